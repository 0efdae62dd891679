"""Documents to a Megatron corpus; see docs/corpus.md."""

from megatron_sbp import cli
from megatron_sbp.corpus.preprocess import Options, preprocess

DESCRIPTION = """
Tokenise documents into Megatron's .bin/.idx, one sequence per document, with a part held out and
the tokenizer beside them. The output directory gets a manifest.json; a finished output made from
the same input and options is recognised.
"""


def main() -> None:
    preprocess(cli.parse(Options, DESCRIPTION))


if __name__ == "__main__":
    cli.run(main)
