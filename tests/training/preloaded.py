"""What every rank loads before it does anything of its own, in the order it does."""

from megatron_sbp.training import platform

platform.install()

import megatron.training.training  # noqa: E402, F401

import megatron_sbp.training.data  # noqa: E402
import megatron_sbp.training.local_layers  # noqa: E402
import megatron_sbp.training.objective  # noqa: E402
import megatron_sbp.training.record  # noqa: E402, F401
