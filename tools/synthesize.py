"""Draw synthetic documents from a tuned synthesizer, each from a seed document of the corpus."""

from megatron_sbp import cli
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.synthesize import synthesize


def main() -> None:
    options = cli.parse(SynthesizeOptions, __doc__)
    with Ranks.open() as ranks:
        manifest = synthesize(options, ranks)
        if ranks.rank == 0:
            counts = manifest.counts
            cli.summary(
                f"synthetic corpus: {options.output_prefix}",
                {
                    "documents": counts["documents"],
                    "tokens": counts["tokens"],
                    "tokens per document": f"mean {counts['mean_tokens']:.1f}",
                    "ended by themselves": counts["finish_reasons"]["eod"],
                    "cut at the maximum": counts["finish_reasons"]["length"],
                    "seeds": f"mean {counts['mean_seed_tokens']:.1f} tokens, "
                    f"{counts['seeds_cut']:,} cut",
                    "time": cli.clock(manifest.seconds),
                    "tokens/s": f"{counts['tokens_per_second']:,.0f}",
                },
            )


if __name__ == "__main__":
    cli.run(main)
