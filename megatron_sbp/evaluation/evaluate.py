"""The evaluate stage: a checkpoint's loss on documents it was not trained on, and its scores."""

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation import tasks as harness
from megatron_sbp.evaluation.perplexity import Plan, Scorer, collect, score
from megatron_sbp.manifest import Manifest, Stage, atomic_write, fingerprints, peak_memory_bytes
from megatron_sbp.models import export, vocabulary
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.npy import open_npy
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import EngineOptions
from megatron_sbp.synthesis.model import choose_device

_LOSS, _TOKENS, _TOKEN_LOSSES = "loss", "tokens", "token_losses"
_DOCUMENTS = 4096  # whose tokens are looked at together


@dataclass(kw_only=True, slots=True)
class EvaluateOptions:
    """Options of ``tools/evaluate.py``."""

    load: str = field(metadata={"metavar": "CKPT"})
    """Directory that Megatron saved to; its newest checkpoint is taken."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Prefixes of documents to measure the loss on, each a source by itself."""
    names: list[str] = field(default_factory=list, metadata={"metavar": "NAME"})
    """Names of these sources, by default the last part of each prefix."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the model, by default the one beside each prefix."""
    stride: int | None = field(default=None, metadata={"metavar": "TOKENS"})
    """Tokens that every further window of a document longer than the model's context scores, after
    the rest of the context for it to go by; by default half of the context."""
    token_losses: bool = False
    """Whether to keep the loss of every token too."""
    tasks: list[str] = field(default_factory=list, metadata={"metavar": "TASK"})
    """Tasks of lm-evaluation-harness to score the exported model in; the paper's are arc_challenge,
    arc_easy, sciq, winogrande, triviaqa and webqs."""
    shots: list[str] = field(default_factory=list, metadata={"metavar": "TASK=NUMBER"})
    """Solved examples before each question of a task, by default 1 for triviaqa and webqs, 0 for
    the paper's other tasks, and for any other what its file says."""
    task_path: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory with task files of your own; they may run Python code."""
    batch_tokens: int = field(default=4096, metadata={"metavar": "TOKENS"})
    """Most tokens that a model computes at a time, those that fill up a batch included."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What to compute in; losses are sums of fp32 numbers either way."""
    tensor_model_parallel_size: int = field(default=1, metadata={"metavar": "DEVICES"})
    """Ranks that share every layer of one model."""
    pipeline_model_parallel_size: int = field(default=1, metadata={"metavar": "DEVICES"})
    """Ranks that one model's layers are dealt out to."""

    def __post_init__(self) -> None:
        for name in ("stride", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.names and len(self.names) != len(self.corpus):
            raise InputError(
                f"--names: gives {len(self.names)} for {len(self.corpus)} prefixes of --corpus; "
                "give one for each"
            )
        names = self.source_names
        for name in names:
            if not name or Path(name).name != name or name.startswith("."):
                raise InputError(f"--names {name!r}: files are called so; give a plain name")
            if names.count(name) > 1:
                raise InputError(f"--names: {name} names two sources; give each a name of its own")
        if not self.corpus and not self.tasks:
            raise InputError("nothing to evaluate on; give --corpus or --tasks")
        if self.task_path is not None and not Path(self.task_path).is_dir():
            raise InputError(f"--task-path {self.task_path}: no such directory")
        _ = self.engine(), self.task_shots  # which check what they are made of

    @property
    def task_shots(self) -> dict[str, int]:
        """Task -> solved examples before a question, where that is not left to its file."""
        return harness.parse_shots(self.shots, self.tasks)

    @property
    def source_names(self) -> list[str]:
        """Name of every source."""
        return self.names or [Path(prefix).name for prefix in self.corpus]

    def engine(self) -> EngineOptions:
        """What the model has of the machine."""
        return EngineOptions(
            engine="megatron",
            dtype=self.dtype,
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            pipeline_model_parallel_size=self.pipeline_model_parallel_size,
        )


@dataclass(kw_only=True, slots=True)
class _Inputs:
    """What every rank opens."""

    checkpoint: MegatronCheckpoint
    """The model."""
    sources: dict[str, Corpus]
    """Name -> documents."""

    @property
    def alone(self) -> bool:
        """Whether the model saw documents by themselves, never one after another."""
        return getattr(self.checkpoint.args, "dataloader_inter_document_masking", False)


def evaluate(options: EvaluateOptions, ranks: Ranks) -> Manifest:
    """Measure a checkpoint, on all ranks.

    Raises:
        InputError: On one rank, if checkpoint or corpus cannot be used or do not fit each other;
            the others end with status 2.
    """
    inputs = ranks.together(lambda: _open_inputs(options, ranks))
    with ExitStack() as stack:
        opened = partial(_open_stage, options, inputs)
        stage = ranks.on_first(lambda: stack.enter_context(opened()))
        workspace = ranks.share(None if stage is None or stage.complete else stage.workspace)
        if workspace is not None:
            sizes = ranks.on_first(partial(_check, options, inputs))
            # Before Megatron is there, which takes a machine without CUDA over.
            ranks.on_first(partial(_measure_tasks, options, inputs, workspace, ranks))
            _measure(options, inputs, workspace, ranks)
            peak = ranks.most(peak_memory_bytes())
            finish = partial(_finish, options, inputs, sizes or {}, peak)
            ranks.on_first(lambda: stage and finish(stage))
        manifest = ranks.share(None if stage is None else stage.manifest)
        assert manifest is not None
        return manifest


def _open_inputs(options: EvaluateOptions, ranks: Ranks) -> _Inputs:
    options.engine().workers(ranks.size)
    return _Inputs(
        checkpoint=MegatronCheckpoint(options.load),
        sources={
            name: Corpus([prefix], options.tokenizer)
            for name, prefix in zip(options.source_names, options.corpus, strict=True)
        },
    )


def _open_stage(options: EvaluateOptions, inputs: _Inputs) -> Stage:
    given = options.task_path
    return Stage.open(
        options.output,
        "evaluate",
        options={
            "names": options.source_names,
            "stride": options.stride,
            "token_losses": options.token_losses,
            "dtype": options.dtype,
            "tasks": {task: options.task_shots.get(task) for task in options.tasks},
        },
        inputs=fingerprints(
            [
                *(path for corpus in inputs.sources.values() for path in corpus.files()),
                *(sorted(filter(Path.is_file, Path(given).rglob("*"))) if given else []),
            ]
        )
        | inputs.checkpoint.fingerprints(),
        resumable=True,
    )


def _check(options: EvaluateOptions, inputs: _Inputs) -> dict[str, int | None]:
    """See that model, tokenizer and documents belong together.

    Returns:
        Source -> bytes of its text, None where the tokenizer is not byte-level.
    """
    context = inputs.checkpoint.args.max_position_embeddings
    if options.stride is not None and options.stride > context:
        raise InputError(
            f"--stride {options.stride}: the context of {options.load} is {context} tokens; "
            "give at most that"
        )
    sizes: dict[str, int | None] = {}
    for name, corpus in inputs.sources.items():
        vocabulary.check_tokenizer(inputs.checkpoint, corpus.tokenizer)
        sizes[name] = _bytes(corpus, first=int(inputs.alone))
    return sizes


def _bytes(corpus: Corpus, first: int) -> int | None:
    """Bytes of all documents' text from their token ``first`` on; tokens are checked on the way."""
    tokenizer, size = corpus.tokenizer, 0
    table = tokenizer.token_bytes
    for documents in batched(range(len(corpus)), _DOCUMENTS):
        bodies = [corpus.body(document) for document in documents]
        for document, body in zip(documents, bodies, strict=True):
            if len(body) and body.max() >= tokenizer.vocab_size:
                raise InputError(
                    f"{corpus.prefixes[0]}: document {document} has token {int(body.max())}, but "
                    f"{tokenizer.directory} has {tokenizer.vocab_size} ids; give the tokenizer "
                    "that the corpus was made with"
                )
        if table is not None:
            size += sum(int(table.lengths[body[first:]].sum()) for body in bodies)
    return None if table is None else size


def _measure_tasks(
    options: EvaluateOptions, inputs: _Inputs, workspace: Path, ranks: Ranks
) -> None:
    """Score the exported model in the tasks, unless an interrupted run has done that."""
    path = workspace / harness.FILENAME
    if not options.tasks or path.exists():
        return
    checkpoint, model = inputs.checkpoint, workspace / "scratch" / "model"
    given = options.tokenizer or next(
        (str(corpus.tokenizer.directory) for corpus in inputs.sources.values()), None
    )
    tokenizer = Tokenizer(given or export.tokenizer_directory(checkpoint))
    vocabulary.check(checkpoint, tokenizer)
    export.write_model(checkpoint, tokenizer, model)
    content = harness.measure(
        model,
        options.tasks,
        options.task_shots,
        options.task_path,
        dtype=options.dtype,
        device=choose_device(options.engine(), ranks),
        batch_size=max(1, options.batch_tokens // checkpoint.args.max_position_embeddings),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _measure(options: EvaluateOptions, inputs: _Inputs, workspace: Path, ranks: Ranks) -> None:
    """Write the losses of the sources that an interrupted run has not got to."""
    missing = [name for name in inputs.sources if not _column(workspace, name, _LOSS).exists()]
    missing = ranks.share(missing)
    if not missing:
        return
    vocab_size = inputs.sources[missing[0]].tokenizer.vocab_size
    context = inputs.checkpoint.args.max_position_embeddings
    stride = options.stride or -(-context // 2)
    scorer = ranks.together(lambda: Scorer(inputs.checkpoint, options.engine(), ranks, vocab_size))
    for name in missing:
        plan = Plan(inputs.sources[name], context, stride, options.batch_tokens, inputs.alone)
        scratch = workspace / "scratch"
        ranks.on_first(partial(scratch.mkdir, exist_ok=True))
        ranks.together(partial(score, scorer, plan, scratch, ranks, f"evaluate {name}"))
        keep = partial(_keep, options, name, plan, workspace, scorer.models)
        ranks.on_first(keep)


def _keep(options: EvaluateOptions, name: str, plan: Plan, workspace: Path, models: int) -> None:
    """Put together what the ranks wrote about a source."""
    losses = workspace / "scratch" / f"{_TOKEN_LOSSES}.npy"
    sums = collect(plan, workspace / "scratch", models, losses)
    if not np.isfinite(sums).all():
        document = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise InputError(
            f"{plan.corpus.prefixes[0]}: document {document} has loss {sums[document]}; the "
            f"weights of {options.load} are damaged, or --dtype {options.dtype} is too narrow"
        )
    if options.token_losses:
        losses.rename(_column(workspace, name, _TOKEN_LOSSES))
    # The last one says that the others are there.
    for column, values in ((_TOKENS, plan.lengths), (_LOSS, sums)):
        with (
            atomic_write(_column(workspace, name, column)) as temporary,
            open(temporary, "wb") as file,
        ):
            np.save(file, values)


def _column(directory: Path, name: str, column: str) -> Path:
    return directory / f"{name}.{column}.npy"


def _finish(
    options: EvaluateOptions,
    inputs: _Inputs,
    sizes: dict[str, int | None],
    peak_memory: int,
    stage: Stage,
) -> Manifest:
    sources = {}
    for name, corpus in inputs.sources.items():
        total = float(open_npy(_column(stage.workspace, name, _LOSS)).sum())
        tokens = int(open_npy(_column(stage.workspace, name, _TOKENS)).sum())
        loss, size = total / max(tokens, 1), sizes[name]
        sources[name] = {
            "prefix": str(corpus.prefixes[0]),
            "documents": len(corpus),
            "tokens": tokens,
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": total / math.log(2) / size if size else None,
        }
    counts = {
        "checkpoint": options.load,
        "iteration": inputs.checkpoint.directory.name,
        "documents_alone": inputs.alone,
        "sources": sources,
    }
    if options.tasks:
        content = json.loads((stage.workspace / harness.FILENAME).read_text())
        counts |= {name: content[name] for name in ("tasks", "not_loaded")}
    return stage.finish(counts=counts, peak_memory=peak_memory)
