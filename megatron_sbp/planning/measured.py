"""What the stages of a finished run took, from the manifests of its boxes."""

from dataclasses import dataclass
from pathlib import Path

from megatron_sbp.manifest import FILENAME, Manifest

_BOXES = {
    "preprocess": ("corpus",),
    "embed": ("embeddings",),
    "mine": ("pairs",),
    "repetition": ("repetition", "baseline"),
    "tune": ("synthesizer",),
    "synthesize": ("synthetic",),
    "filter": ("filtered",),
    "sbp": ("sbp", "joint"),
}
"""Stage of a plan -> names that its box may have in a run's directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A finished run."""

    manifests: dict[str, Manifest]
    """Stage of a plan -> manifest of its box."""

    @classmethod
    def read(cls, directory: str) -> "Measured":
        """Read the boxes that are there.

        Raises:
            InputError: If a manifest is damaged.
        """
        found = {}
        for stage, names in _BOXES.items():
            for name in names:
                if (Path(directory) / name / FILENAME).is_file():
                    found[stage] = Manifest.read(Path(directory) / name)
        return cls(manifests=found)

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds from its start to its end."""
        return {stage: manifest.seconds for stage, manifest in self.manifests.items()}
