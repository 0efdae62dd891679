"""Embed every document of a corpus: shards of unit vectors, float16, in document order.

One process, or many under torchrun, srun or mpiexec.
"""

from typing import Any

from megatron_sbp import cli
from megatron_sbp.embedding.embed import embed
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.manifest import Manifest
from megatron_sbp.ranks import Ranks


def main() -> None:
    with Ranks.open() as ranks:
        options = ranks.together(lambda: cli.parse(EmbedOptions, __doc__))
        manifest = embed(options, ranks)
        if ranks.rank == 0:
            summarize(options.output, manifest)


def summarize(output: str, manifest: Manifest) -> None:
    counts, settings = manifest.counts, manifest.options
    cli.summary(
        f"embeddings: {output}",
        {
            "encoder": f"{settings['encoder']}, {reads(settings)}",
            "documents": counts["documents"],
            "cut": f"{counts['cut']:,} were longer",
            "dimensions": counts["dimensions"],
            "shards": len(manifest.outputs),
            "time": cli.clock(manifest.seconds),
            "documents/s": f"{counts['documents'] / manifest.seconds:.1f}",
        },
    )


def reads(settings: dict[str, Any]) -> str:
    if "max_length" not in settings:
        return "whole text"
    if settings["max_windows"] == 1:
        return f"first {settings['max_length']:,} tokens"
    return f"up to {settings['max_windows']} windows of {settings['max_length']:,} tokens"


if __name__ == "__main__":
    cli.run(main)
