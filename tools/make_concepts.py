"""Write a corpus whose truth is known: documents about latent concepts, made from a seed.

A document tells a few attributes of one concept, in random order, wording and style. Written are
training documents (real), held-out ones (real-heldout), many more (oracle), all different, their
tokenizer, what is true of every concept, and the entropy floor of the held-out documents.
"""

from megatron_sbp import cli
from megatron_sbp.corpus.concepts.make import MakeOptions, make_concepts


def main() -> None:
    make_concepts(cli.parse(MakeOptions, __doc__ or ""))


if __name__ == "__main__":
    cli.run(main)
