"""The audit stage: synthetic documents beside real ones, measured with the same code."""

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.embed import EmbedOptions
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation import audit_page, judge
from megatron_sbp.evaluation.audit_judged import QUESTIONS, measure_judged, not_judged
from megatron_sbp.evaluation.audit_relevance import measure_relevance
from megatron_sbp.evaluation.audit_samples import Samples
from megatron_sbp.evaluation.audit_texts import measure_corpus, measure_self_bleu, measure_texts
from megatron_sbp.evaluation.findings import MEASURES, Findings, Row
from megatron_sbp.evaluation.judge import Answers, Judge
from megatron_sbp.evaluation.judge_endpoint import EndpointJudge
from megatron_sbp.evaluation.judge_model import ModelJudge
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus

FILENAME, PAGE = "audit.json", "audit.html"
FORMAT = "megatron_sbp audit 2"


@dataclass(kw_only=True, slots=True)
class AuditOptions:
    """Options of ``tools/audit_synthetic.py``."""

    synthetic: list[str] = field(metadata={"metavar": "S"})
    """Prefix of the synthetic corpus, or prefixes of its parts."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the real corpus; those that the seeds come from must be among them. Synthetic
    seeds are read where they lay when the documents were made."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pair store over the corpus: true pairs to compare the synthetic ones with."""
    sample: int = field(default=2000, metadata={"metavar": "DOCUMENTS"})
    """Documents drawn at random of each side, at most all of them; the duplicate rate grows with
    their number, and memory by about 1 kB for each."""
    held: int = field(default=20_000, metadata={"metavar": "DOCUMENTS"})
    """Documents of each sample whose n-grams are compared with the whole corpus; they are held in
    memory, with about 100 bytes per word."""
    self_bleu: int = field(default=1000, metadata={"metavar": "DOCUMENTS"})
    """Documents of each sample that are compared with each other; self-BLEU grows with their
    number."""
    encoder: str = field(default="minilm", metadata={"metavar": "NAME"})
    """Encoder of the pair relevance: minilm, lexical, the directory or Hub name of a Hugging Face
    model, or none."""
    encoded: int = field(default=100, metadata={"metavar": "PAIRS"})
    """Pairs of each kind that are embedded."""
    judge_model: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Judge of what is false or unrelated: the name of a model at --judge-url, or without one the
    directory or Hub name of a Hugging Face model; by default these are not measured."""
    judge_url: str | None = field(default=None, metadata={"metavar": "URL"})
    """OpenAI-compatible endpoint, up to and including /v1."""
    judge_key: str = field(default="OPENAI_API_KEY", metadata={"metavar": "VARIABLE"})
    """Environment variable with the key of the endpoint; no key is sent if it is not set."""
    judged: int = field(default=200, metadata={"metavar": "CASES"})
    """Documents and pairs of each kind that the judge is asked about."""
    judge_characters: int = field(default=6000, metadata={"metavar": "CHARACTERS"})
    """Characters of a document that the judge is shown."""
    judge_tokens: int = field(default=16, metadata={"metavar": "TOKENS"})
    """Most tokens of an answer of the endpoint; a model that thinks first needs more."""
    judge_concurrency: int = field(default=8, metadata={"metavar": "REQUESTS"})
    """Requests to the endpoint at a time."""
    judge_timeout: float = field(default=120.0, metadata={"metavar": "SECONDS"})
    """How long the endpoint may be silent before a request is repeated."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        for name in (
            "sample",
            "held",
            "self_bleu",
            "encoded",
            "judged",
            "judge_characters",
            "judge_tokens",
            "judge_concurrency",
            "judge_timeout",
        ):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: must be at least 1")
        if not self.judge_key.isidentifier():
            raise InputError(
                "--judge-key: is the name of an environment variable, which holds the key; a key "
                "itself does not belong on a command line"
            )
        if self.judge_url is not None and self.judge_model is None:
            raise InputError(f"--judge-url {self.judge_url}: name its model with --judge-model")
        if self.judge_url is not None and not self.judge_url.startswith(("http://", "https://")):
            raise InputError(f"--judge-url {self.judge_url}: must begin with http:// or https://")

    def judge(self) -> Judge | None:
        """The judge that the options name."""
        if self.judge_model is None:
            return None
        if self.judge_url is None:
            return ModelJudge(self.judge_model)
        return EndpointJudge(
            self.judge_url,
            self.judge_model,
            key=os.environ.get(self.judge_key),
            tokens=self.judge_tokens,
            concurrency=self.judge_concurrency,
            timeout=self.judge_timeout,
        )

    def encoder_spec(self) -> EncoderSpec | None:
        """The encoder that the options name."""
        if self.encoder == "none":
            return None
        return EmbedOptions(corpus=self.corpus, output="", encoder=self.encoder).spec()

    def content(self, encoder: EncoderSpec | None, judge: Judge | None) -> dict[str, Any]:
        """What decides the content of the output, besides the inputs."""
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ("sample", "held", "self_bleu", "encoded", "seed")
        }
        settings["encoder"] = None if encoder is None else encoder.settings()
        settings["judge"] = None
        if judge is not None:
            settings["judge"] = judge.settings() | {
                "judged": self.judged,
                "characters": self.judge_characters,
                "questions": {question.name: question.version for question in QUESTIONS},
            }
        return settings


def audit(options: AuditOptions) -> tuple[Manifest, list[Row]]:
    """Measure a synthetic corpus beside the real one; write ``audit.json`` and ``audit.html``.

    Returns:
        The manifest and the rows of the table.

    Raises:
        InputError: If anything given cannot be read or does not belong together, or the judge
            does not answer.
    """
    synthetic, real = SyntheticCorpus(options.synthetic), Corpus(options.corpus)
    store = None if options.pairs is None else PairStore(options.pairs, real)
    encoder, asked = options.encoder_spec(), options.judge()
    with Stage.open(
        options.output,
        "audit",
        options=options.content(encoder, asked),
        inputs=[*synthetic.files(), *real.files(), *(store.files() if store else [])],
        resumable=asked is not None,
    ) as stage:
        if not stage.complete:
            samples = Samples(synthetic, real, store, size=options.sample, seed=options.seed)
            path = stage.workspace / judge.FILENAME
            answers = None if asked is None else Answers(path, asked)
            content = measure(options, samples, encoder, answers)
            text = json.dumps(content, indent=1, allow_nan=False)
            (stage.workspace / FILENAME).write_text(text + "\n")
            page = audit_page.render(content | {"options": stage.manifest.options})
            (stage.workspace / PAGE).write_text(page, encoding="utf-8")
            rows = content["measures"]
            measured = sum(row["synthetic"] is not None for row in rows)
            stage.finish(counts={"measured": measured, "not_measured": len(rows) - measured})
    rows = json.loads((stage.directory / FILENAME).read_text())["measures"]
    return stage.manifest, [Row(**row) for row in rows]


def measure(
    options: AuditOptions,
    samples: Samples,
    encoder: EncoderSpec | None,
    answers: Answers | None,
) -> dict[str, Any]:
    """The content of ``audit.json``; the judge is asked last, when all else has worked."""
    findings = Findings()
    measure_texts(samples, findings)
    measure_corpus(samples, options.held, findings)
    measure_self_bleu(samples, options.self_bleu, findings)
    measure_relevance(samples, encoder, options.encoded, findings)
    judged = None
    if answers is None:
        not_judged(findings)
    else:
        judged = measure_judged(
            samples,
            answers,
            most=options.judged,
            characters=options.judge_characters,
            findings=findings,
        )
    return {
        "format": FORMAT,
        "sample": samples.size,
        "documents": {"synthetic": len(samples.new), "real": len(samples.real)},
        "measures": [asdict(findings.rows[name]) for name in MEASURES],
        "distributions": findings.distributions,
        "judge": judged,
        "worst": samples.worst(findings),
    }
