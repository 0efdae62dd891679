"""The synthesize stage: seed documents in, documents drawn from p(d2|d1) out."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import optimal_dtype
from megatron_sbp.corpus.template import Template
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, peak_memory_bytes
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import model
from megatron_sbp.synthesis.engine import Engine, Request, Sampling
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.shards import Generated, Shards, ShardWriter
from megatron_sbp.synthesis.store import Provenance

_MODEL, _SHARDS = "model", "shards"  # what lies in the workspace until the output is complete
# Options that do not decide the content; the content of these paths is among the inputs.
_FREE = ("load", "corpus", "output_prefix", "tokenizer", "batch_size", "device")


@dataclass(kw_only=True, slots=True)
class SynthesizeOptions:
    """Options of ``tools/synthesize.py``."""

    load: str = field(metadata={"metavar": "CKPT"})
    """The tuned synthesizer: a directory that Megatron saved to, or a Hugging Face directory."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that seeds are drawn from, every document with equal probability."""
    output_prefix: str = field(metadata={"metavar": "S"})
    """Path without .bin/.idx of the synthetic corpus; its directory must be empty or not exist."""
    num_tokens: int | None = field(default=None, metadata={"metavar": "N"})
    """Stop with the document that brings the corpus to N tokens."""
    num_documents: int | None = field(default=None, metadata={"metavar": "N"})
    """Stop after N documents; give this or --num-tokens."""
    engine: Literal["hf"] = "hf"
    """What generates; hf: Transformers with a key-value cache."""
    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most probable token."""
    top_p: float = 0.9
    """Draw from the smallest set of most probable tokens with this much probability; 1: all."""
    top_k: int = 0
    """Draw from the K most probable tokens; 0: all."""
    max_seed_tokens: int = 0
    """Cut seeds to this many tokens; 0: half of the context, or what --max-new-tokens leaves."""
    max_new_tokens: int = 0
    """End a document after this many tokens; 0: when the context is full."""
    template: str = "{bos}{d1}{sep}{d2}{eod}"
    """The --sbp-template that the synthesizer was tuned with; it must end with {eod}."""
    separator: str = "<|sep|>"
    """The --sbp-separator that it was tuned with."""
    seed: int = 0
    """Seed of the run: it and a document's number decide everything random about the document."""
    batch_size: int = field(default=64, metadata={"metavar": "DOCUMENTS"})
    """Documents that a rank works on at a time."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What to compute in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a CUDA device if there is one."""
    documents_per_shard: int = field(default=64, metadata={"metavar": "DOCUMENTS"})
    """Documents that are written, and kept if the run is interrupted, together."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""

    def __post_init__(self) -> None:
        if (self.num_tokens is None) == (self.num_documents is None):
            raise InputError("give either --num-tokens or --num-documents")
        for name in ("num_tokens", "num_documents", "batch_size", "documents_per_shard"):
            self._check(name, 1)
        for name in ("temperature", "top_k", "max_seed_tokens", "max_new_tokens", "seed"):
            self._check(name, 0)
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1")

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")

    @property
    def sampling(self) -> Sampling:
        """How the next token is drawn."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def content(self) -> dict[str, Any]:
        """What decides the content of the output, besides the inputs."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


def synthesize(options: SynthesizeOptions, ranks: Ranks) -> Manifest:
    """Generate a synthetic corpus, on all ranks.

    Raises:
        InputError: On one rank, if corpus, tokenizer or model cannot be used or do not fit each
            other; the others end with status 2.
    """
    corpus = ranks.together(lambda: _open_corpus(options))
    source = ranks.together(lambda: model.find(options.load))
    with ExitStack() as stack:
        stage = ranks.on_first(lambda: stack.enter_context(_open_stage(options, corpus, source)))
        workspace = ranks.share(None if stage is None or stage.complete else stage.workspace)
        if workspace is not None:
            shards = Shards(
                workspace / _SHARDS,
                options.documents_per_shard,
                options.num_documents,
                options.num_tokens,
            )
            prepare = partial(_prepare, options, corpus, source, shards, workspace)
            directory = ranks.share(ranks.on_first(prepare))
            assert directory is not None
            ranks.together(lambda: _generate_share(options, corpus, directory, shards, ranks))
            peak = ranks.most(peak_memory_bytes())
            finish = partial(_finish, options, corpus, source, shards, ranks.size, peak)
            ranks.on_first(lambda: stage and finish(stage))
        manifest = ranks.share(None if stage is None else stage.manifest)
        assert manifest is not None
        return manifest


def _open_corpus(options: SynthesizeOptions) -> Corpus:
    """The seed corpus, its tokenizer checked."""
    corpus = Corpus(options.corpus, options.tokenizer)
    _ = corpus.tokenizer
    return corpus


def _open_stage(options: SynthesizeOptions, corpus: Corpus, source: model.Source) -> Stage:
    return Stage.open(
        Path(options.output_prefix).parent,
        "synthesize",
        options=options.content(),
        inputs=[*corpus.files(), *source.files()],
        resumable=True,
    )


def _prepare(
    options: SynthesizeOptions,
    corpus: Corpus,
    source: model.Source,
    shards: Shards,
    workspace: Path,
) -> Path:
    """Check that everything fits before anything is written; the model's directory."""
    shards.release()
    source.check(corpus.tokenizer)
    _prompts(options, corpus, source.context)
    return source.prepare(corpus.tokenizer, workspace / _MODEL)


def _prompts(options: SynthesizeOptions, corpus: Corpus, context: int) -> Prompts:
    return Prompts(
        corpus,
        context,
        seed=options.seed,
        template=_template(options, corpus.tokenizer),
        max_seed_tokens=options.max_seed_tokens,
        max_new_tokens=options.max_new_tokens,
    )


def _template(options: SynthesizeOptions, tokenizer: Tokenizer) -> Template:
    template = Template.parse(
        options.template,
        options.separator,
        tokenizer.encode_template,
        bos=tokenizer.bos,
        eod=tokenizer.eod,
    )
    if template.after[-1:] != (tokenizer.eod,):
        raise InputError(
            f"--template {options.template!r}: does not end with {{eod}}, by which a document ends"
        )
    return template


def _generate_share(
    options: SynthesizeOptions, corpus: Corpus, directory: Path, shards: Shards, ranks: Ranks
) -> None:
    """Make shards until the run has enough."""
    if shards.complete():
        return
    eod = corpus.tokenizer.eod
    engine = model.load_engine(
        directory,
        eod,
        options.sampling,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device=options.device,
        threads=ranks.cores,
        rank=ranks.rank,
    )
    prompts = _prompts(options, corpus, engine.context)
    generated = _documents(engine, prompts, shards, ranks, eod)
    if ranks.rank == 0:
        _show(generated, options, shards, ranks.size)
    else:
        for _ in generated:
            pass


def _show(
    generated: Iterator[Generated], options: SynthesizeOptions, shards: Shards, ranks: int
) -> None:
    """Run rank 0's share and show the progress of all ranks, which advance alike."""
    documents, tokens, _ = shards.effort()
    by_tokens = options.num_tokens is not None
    unit, before = ("tokens", tokens) if by_tokens else ("documents", documents)
    total = options.num_tokens or options.num_documents or 0
    with Progress("synthesize", total, unit, initial=min(before, total)) as progress:
        for document in generated:
            step = ranks * (len(document.tokens) if by_tokens else 1)
            progress.update(min(step, total - progress.done))


def _documents(
    engine: Engine, prompts: Prompts, shards: Shards, ranks: Ranks, eod: int
) -> Iterator[Generated]:
    """Generate and write this rank's missing shards; yield every document as it ends."""
    writer = ShardWriter(shards)
    provenances: dict[int, Provenance] = {}

    def requests() -> Iterator[Request]:
        for shard in shards.claim():
            for number in shards.numbers(shard):
                request, provenances[number] = prompts.request(number)
                yield request

    for continuation in engine.generate(requests()):
        ranks.check()
        number = continuation.number
        generated = Generated(
            tokens=np.append(prompts.template.document(continuation.tokens), eod),
            finish_reason=continuation.finish_reason,
            provenance=provenances.pop(number),
        )
        writer.add(number, generated)
        yield generated
        if shards.enough():
            return  # What is still at work lies beyond the end of the run.


def _finish(
    options: SynthesizeOptions,
    corpus: Corpus,
    source: model.Source,
    shards: Shards,
    ranks: int,
    peak_memory: int,
    stage: Stage,
) -> Manifest:
    """Put the shards together and complete the output."""
    tokenizer = corpus.tokenizer
    _, tokens, seconds = shards.effort()
    prefix = stage.workspace / Path(options.output_prefix).name
    figures = shards.assemble(prefix, optimal_dtype(tokenizer.vocab_size))
    tokenizers.copy(str(tokenizer.directory), stage.workspace / "tokenizer")
    for name in (_SHARDS, _MODEL):
        shutil.rmtree(stage.workspace / name, ignore_errors=True)
    checksum = _checksum(source, stage.manifest)
    figures |= {
        "generation_seconds": seconds / ranks,
        "tokens_per_second": tokens * ranks / seconds,
        "checkpoint": {"path": options.load, "sha256": checksum},
        "corpus": corpus.fingerprints,
    }
    return stage.finish(counts=figures, peak_memory=peak_memory)


def _checksum(source: model.Source, manifest: Manifest) -> str:
    """One checksum for all files of the model, from those in a manifest that has them as inputs."""
    digest = hashlib.sha256()
    for path in source.files():
        digest.update(f"{path.name} {manifest.inputs[str(path)]['sha256']}\n".encode())
    return digest.hexdigest()
