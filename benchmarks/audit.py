r"""How fast the audit reads documents, judge and encoder left out.

    python -m benchmarks.audit --synthetic quickstart/filtered/synthetic \
        --corpus quickstart/corpus/real --pairs quickstart/pairs

Every part is timed in CPU seconds of one process, so that what else the machine does counts little.
Its documents are those of both samples, and of the pairs or the whole corpus where it reads these;
d1 of a pair is read too, but not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.words import read
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.audit_samples import Samples
from megatron_sbp.evaluation.audit_texts import measure_corpus, measure_self_bleu, measure_texts
from megatron_sbp.evaluation.findings import Findings
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    synthetic: list[str] = field(metadata={"metavar": "S"})
    """Prefixes of the synthetic corpus; one given several times counts several times."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the real corpus."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pair store over the corpus."""
    sample: int = field(default=100_000, metadata={"metavar": "DOCUMENTS"})
    """Documents drawn of each side."""
    rounds: int = 3
    """Times that everything is measured; medians are shown."""

    def __post_init__(self) -> None:
        for name in ("sample", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")


def main() -> None:
    options = cli.parse(Options, __doc__)
    synthetic, real = SyntheticCorpus(options.synthetic), Corpus(options.corpus)
    store = None if options.pairs is None else PairStore(options.pairs, real)
    samples = Samples(synthetic, real, store, size=options.sample, seed=0)
    parts: dict[str, tuple[int, Callable[[Findings], None]]] = {
        "samples and pairs": (len(samples.anchors), partial(measure_texts, samples)),
        "whole corpus": (len(real), partial(measure_corpus, samples, samples.size)),
        "self-BLEU": (0, partial(measure_self_bleu, samples, samples.size)),
    }
    for batch in read(real, range(min(len(real), 100))):
        batch.words()  # tables that are made once
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds):
        for name, (_, run) in parts.items():
            began = time.process_time()
            run(Findings())
            seconds[name].append(time.process_time() - began)
    rows: dict[str, object] = {}
    both = 2 * samples.size
    for name, (more, _) in parts.items():
        rows[name] = _shown(both + more, median(seconds[name]))
    counted = sum(both + more for more, _ in parts.values()) - 2 * both  # the samples once
    total = median(map(sum, zip(*seconds.values(), strict=True)))
    cli.summary("audit, one core", rows | {"together": _shown(counted, total)})


def _shown(documents: int, seconds: float) -> str:
    return f"{documents:,} documents in {seconds:.2f} s: {documents / seconds:,.0f}/s"


if __name__ == "__main__":
    cli.run(main)
