"""What a device can do at most, and what share of it the stages are taken to reach."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A kind of device.

    The ceilings are the maker's, for dense products. The shares are assumptions: nothing but an
    H200's ceilings was measured for this project (790 TFLOP/s of bf16 products of 8,192, 4.3 TB/s).
    """

    name: str
    flops: dict[str, float]
    """Precision -> operations per second."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """Bytes of its memory."""
    training: dict[str, float]
    """Precision -> share of ``flops`` that a training step reaches (MFU)."""
    reading: float = 0.4
    """Share of ``flops`` that reading prompts, and encoders, reach."""
    decoding: float = 0.5
    """Share of ``bandwidth`` that drawing tokens one after another reaches."""


# Training: Megatron's own published runs of models of a few billion parameters reach 40 to 47% of
# the bf16 ceiling on H100s; FP8 products are twice as fast, but are not all of a step.
_TRAINING = {"bf16": 0.4, "fp8": 0.28}

DEVICES = {
    "h100": Device(
        name="H100 SXM",
        flops={"bf16": 989e12, "fp8": 1979e12},
        bandwidth=3.35e12,
        memory=80e9,
        training=_TRAINING,
    ),
    "h200": Device(
        name="H200 SXM",
        flops={"bf16": 989e12, "fp8": 1979e12},
        bandwidth=4.8e12,
        memory=141e9,
        training=_TRAINING,
    ),
    "b200": Device(
        name="B200 SXM",
        flops={"bf16": 2250e12, "fp8": 4500e12},
        bandwidth=8e12,
        memory=180e9,
        training=_TRAINING,
    ),
    "v5p": Device(
        name="TPU v5p",  # the paper's
        flops={"bf16": 459e12},
        bandwidth=2.77e12,
        memory=95e9,
        training=_TRAINING,
    ),
}
