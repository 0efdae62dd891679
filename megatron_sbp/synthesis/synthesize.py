"""The synthesize stage: seed documents in, documents drawn from p(d2|d1) out."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import optimal_dtype
from megatron_sbp.corpus.template import Template
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, atomic_write, fingerprints, peak_memory_bytes
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.npy import open_npy
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import generations, model
from megatron_sbp.synthesis.engine import Engine, Request
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.seeds import UNIFORM, Neighbors, Seeds, write_cumulative
from megatron_sbp.synthesis.shards import Generated, Shards, ShardWriter
from megatron_sbp.synthesis.store import Provenance, checkpoint_id, column_path
from megatron_sbp.synthesis.tuning import check_prompt

# What lies in the scratch directory until the output is complete.
_MODEL, _SHARDS, _WEIGHTS = "model", "shards", "weights.npy"


def synthesize(options: SynthesizeOptions, ranks: Ranks) -> Manifest:
    """Generate a synthetic corpus, on all ranks.

    Raises:
        InputError: On one rank, if corpus, tokenizer or model cannot be used or do not fit each
            other; the others end with status 2.
    """
    inputs = ranks.together(lambda: _open_inputs(options, ranks))
    workers = ranks.together(lambda: options.workers(ranks.size))
    with ExitStack() as stack:
        opened = partial(_open_stage, options, inputs)
        stage = ranks.on_first(lambda: stack.enter_context(opened()))
        scratch = ranks.share(None if stage is None or stage.complete else stage.scratch)
        if scratch is not None:
            shards = options.shards(scratch / _SHARDS)
            prepare = partial(_prepare, options, inputs, shards, stage)
            prepared = ranks.share(ranks.on_first(prepare))
            assert prepared is not None
            ranks.together(lambda: _generate_share(options, inputs, prepared, shards, ranks))
            peak = ranks.most(peak_memory_bytes())
            finish = partial(_finish, options, inputs, prepared, shards, workers, peak)
            ranks.on_first(lambda: stage and finish(stage))
        manifest = ranks.share(None if stage is None else stage.manifest)
        assert manifest is not None
        return manifest


@dataclass(kw_only=True, slots=True)
class _Inputs:
    """What every rank opens."""

    corpus: Corpus
    """Where seeds are drawn from."""
    neighbors: Neighbors | None
    """What stands beside them, where that is asked for."""
    source: model.Source
    """The model."""
    files: list[Path]
    """All of it that decides the output, but the model's."""


@dataclass(kw_only=True, slots=True)
class _Prepared:
    """What rank 0 found out and made for all."""

    directory: Path
    """Where the model lies, exported if the engine needs that."""
    sha256: str
    """One checksum for all files of the model."""
    generation: int
    """The largest generation of the documents that it was trained on."""
    weights: Path | None
    """Sums of the seeds' weights; None where all have the same."""


def _open_inputs(options: SynthesizeOptions, ranks: Ranks) -> _Inputs:
    corpus = Corpus(options.corpus, options.tokenizer)
    if options.seed_corpus:
        corpus = Corpus(options.seed_corpus, corpus.tokenizer.directory)
    _ = corpus.tokenizer  # which checks it
    columns = [column_path(prefix, "generation") for prefix in corpus.prefixes]
    files = [*corpus.files(), *(path for path in columns if path.exists())]
    neighbors = None
    if options.pairs:
        pairs = PairStore(options.pairs, check_rows=ranks.rank == 0)
        neighbors = Neighbors(pairs, corpus, options.context_documents - 1)
        files += pairs.files()
    if options.weights_file:
        files.append(Path(options.weights_file))
    source = model.find(options.load, options.engine)
    return _Inputs(corpus=corpus, neighbors=neighbors, source=source, files=files)


def _open_stage(options: SynthesizeOptions, inputs: _Inputs) -> Stage:
    return Stage.open(
        Path(options.output_prefix).parent,
        "synthesize",
        options=options.content(),
        inputs=fingerprints(inputs.files) | inputs.source.fingerprints(),
        resumable=True,
    )


def _prepare(
    options: SynthesizeOptions, inputs: _Inputs, shards: Shards, stage: Stage | None
) -> _Prepared:
    """Check that everything fits before anything is written; on rank 0."""
    assert stage is not None
    shards.release()
    corpus, source = inputs.corpus, inputs.source
    source.check(corpus.tokenizer)
    check_prompt(options)
    generation = options.model_generation
    if generation is None:
        generation = generations.of_model(options.load)
    stage.scratch.mkdir(exist_ok=True)
    directory = stage.scratch / _MODEL
    weights = None if options.seed_weights == UNIFORM else stage.scratch / _WEIGHTS
    if weights and not weights.exists():
        with atomic_write(weights) as temporary:
            write_cumulative(options.seed_weights, corpus, temporary)
    checksum = _checksum(source, stage.manifest)
    prepared = _Prepared(
        directory=directory, sha256=checksum, generation=generation, weights=weights
    )
    _prompts(options, inputs, prepared, source.context)
    prepared.directory = source.prepare(corpus.tokenizer, directory)
    return prepared


def _prompts(
    options: SynthesizeOptions, inputs: _Inputs, prepared: _Prepared, context: int
) -> Prompts:
    weights = None
    if prepared.weights:
        weights = np.asarray(open_npy(prepared.weights))
    return Prompts(
        Seeds(inputs.corpus, weights, inputs.neighbors),
        context,
        seed=options.seed,
        template=_template(options, inputs.corpus.tokenizer),
        max_seed_tokens=options.max_seed_tokens,
        max_new_tokens=options.max_new_tokens,
        checkpoint=checkpoint_id(prepared.sha256),
        generation=prepared.generation,
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
    options: SynthesizeOptions,
    inputs: _Inputs,
    prepared: _Prepared,
    shards: Shards,
    ranks: Ranks,
) -> None:
    """Make shards until the run has enough."""
    if shards.complete():
        return
    tokenizer = inputs.corpus.tokenizer
    engine = model.load_engine(
        options,
        prepared.directory,
        options.sampling,
        ranks,
        eod=tokenizer.eod,
        vocab_size=tokenizer.vocab_size,
    )
    prompts = _prompts(options, inputs, prepared, engine.context)
    generated = _documents(engine, prompts, shards, ranks, tokenizer.eod)
    if ranks.rank == 0:
        _show(generated, options, shards, options.workers(ranks.size))
    else:
        for _ in generated:
            pass


def _show(
    generated: Iterator[Generated], options: SynthesizeOptions, shards: Shards, workers: int
) -> None:
    """Run rank 0's share and show the progress of all workers, which advance alike."""
    documents, tokens, _ = shards.effort()
    by_tokens = options.num_tokens is not None
    unit, before = ("tokens", tokens) if by_tokens else ("documents", documents)
    total = (options.num_tokens or options.num_documents or 0) // options.numbered_part[1]
    with Progress("synthesize", total, unit, initial=min(before, total)) as progress:
        for document in generated:
            step = workers * (len(document.tokens) if by_tokens else 1)
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
    inputs: _Inputs,
    prepared: _Prepared,
    shards: Shards,
    workers: int,
    peak_memory: int,
    stage: Stage,
) -> Manifest:
    """Put the shards together and complete the output."""
    tokenizer = inputs.corpus.tokenizer
    _, tokens, seconds = shards.effort()
    prefix = stage.workspace / Path(options.output_prefix).name
    figures = shards.assemble(prefix, optimal_dtype(tokenizer.vocab_size))
    tokenizers.copy(str(tokenizer.directory), stage.workspace / "tokenizer")
    figures |= {
        "generation_seconds": seconds / workers,
        "tokens_per_second": tokens * workers / seconds,
        "checkpoint": {
            "path": options.load,
            "sha256": prepared.sha256,
            "generation": prepared.generation,
        },
        "corpus": inputs.corpus.fingerprints,
    }
    if options.pairs:
        figures["pairs"] = options.pairs
    return stage.finish(counts=figures, peak_memory=peak_memory)


def _checksum(source: model.Source, manifest: Manifest) -> str:
    """One checksum for all files of the model, from those in a manifest that has them as inputs."""
    digest = hashlib.sha256()
    for path in source.files():
        digest.update(f"{path.name} {manifest.inputs[str(path)]['sha256']}\n".encode())
    return digest.hexdigest()
