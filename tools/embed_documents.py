"""Embed every document of a corpus: shards of unit vectors, float16, in document order."""

from megatron_sbp import cli
from megatron_sbp.embedding.embed import EmbedOptions, embed


def main() -> None:
    options = cli.parse(EmbedOptions, __doc__)
    manifest = embed(options)
    counts, settings = manifest.counts, manifest.options
    read = f"first {settings['max_length']} tokens" if "max_length" in settings else "whole text"
    cli.summary(
        f"embeddings: {options.output}",
        {
            "encoder": f"{settings['encoder']}, {read}",
            "documents": counts["documents"],
            "cut": f"{counts['cut']:,} were longer",
            "dimensions": counts["dimensions"],
            "shards": len(manifest.outputs),
            "time": cli.clock(manifest.seconds),
            "documents/s": f"{counts['documents'] / manifest.seconds:.1f}",
        },
    )


if __name__ == "__main__":
    cli.run(main)
