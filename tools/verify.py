"""Read all files of finished boxes again and compare them with the checksums in their manifests.

Commands trust a file that has the size and the time of modification that its manifest says, so
that naming terabytes as an input is free. This one trusts nothing.
"""

from dataclasses import dataclass, field

from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest


@dataclass(kw_only=True)
class VerifyOptions:
    """Options of tools/verify.py."""

    box: list[str] = field(metadata={"metavar": "DIR"})
    """Directories that stages have written."""


def main() -> None:
    options = cli.parse(VerifyOptions, __doc__ or "")
    for box in options.box:
        manifest = Manifest.read(box)
        if not manifest.outputs:
            raise InputError(
                f"{box}: its manifest lists no files, as that of a training run; checkpoints are "
                "compared when they are loaded, with --verify-integrity"
            )
        manifest.verify(box)
        size = sum(entry["bytes"] for entry in manifest.outputs.values())
        print(f"{box}: {len(manifest.outputs)} files, {size:,} bytes, as they were written")


if __name__ == "__main__":
    cli.run(main)
