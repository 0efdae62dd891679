"""Compare pairs and synthetic documents with what is true in a concepts corpus.

Of pairs: how many share a concept (precision) and how many of those that do were found (recall), by
similarity. Of synthetic documents: how many the grammar could have written, and how many of their
statements are true of the concept that they name.
"""

from megatron_sbp import cli
from megatron_sbp.evaluation.concepts import CheckOptions, check


def main() -> None:
    for line in check(cli.parse(CheckOptions, __doc__ or "")):
        print(line)


if __name__ == "__main__":
    cli.run(main)
