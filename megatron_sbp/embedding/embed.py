"""The embed stage: documents in, shards of unit vectors out.

    shards ── dealt to ranks ──> pieces ──> encoder (one on a GPU, or processes) ──> one file each

A shard depends on nothing but its documents, so the result is the same for any number of ranks and
worker processes, and an interrupted run continues with the shards that are missing.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.embedding.pool import encode_pieces
from megatron_sbp.embedding.shards import shard_name
from megatron_sbp.embedding.transformer import TransformerSpec
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, atomic_write, peak_memory_bytes
from megatron_sbp.npy import open_npy, save_npy
from megatron_sbp.ranks import Ranks
from megatron_sbp.sealed import check_seal, sealed_directory

# Documents encoded as one piece. Batches of similar length are formed within a piece, so this
# decides the rounding of every vector and must not depend on machine or options.
_PIECE = 512
_PREPARED = "encoder"


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file."""

    path: Path
    documents: range

    @property
    def record_path(self) -> Path:
        """Beside the file while the stage is at work: how many of its documents were cut, and the
        checksum of both.
        """
        return self.path.with_suffix(".json")

    def exists(self) -> bool:
        """Whether it was written."""
        return self.path.exists() and self.record_path.exists()

    def cut(self) -> int:
        """How many of its documents were cut."""
        return int(json.loads(self.record_path.read_text())["cut"])

    def check(self) -> None:
        """Read both files.

        Raises:
            InputError: If they are not as they were written.
        """
        try:
            record = json.loads(self.record_path.read_text())
            same = record["crc32"] == _checksum(self.path, record["cut"])
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise InputError(
                f"{self.path}: it or {self.record_path.name} is damaged; remove both, and the same "
                "command makes them again"
            )

    def pieces(self) -> Iterator[range]:
        """Its documents, as they are encoded."""
        for start in range(self.documents.start, self.documents.stop, _PIECE):
            yield range(start, min(start + _PIECE, self.documents.stop))

    def write(self, vectors: np.ndarray, cut: int) -> None:
        """Write both files, each whole or not at all."""
        with atomic_write(self.path) as temporary:
            save_npy(temporary, vectors)
            record = {"cut": cut, "crc32": _checksum(temporary, cut)}
            with atomic_write(self.record_path) as temporary_record:
                temporary_record.write_text(json.dumps(record))


def _checksum(path: Path, cut: int) -> int:
    return zlib.crc32(str(cut).encode(), zlib.crc32(np.memmap(path, np.uint8, "r")))


def embed(options: EmbedOptions, ranks: Ranks | None = None) -> Manifest:
    """Embed every document of a corpus, on all ranks.

    Writes ``embeddings-00000-of-000NN.npy`` (float16 [n, d], unit rows, document order). An
    interrupted run continues at the shards that are missing.

    Raises:
        InputError: On one rank, if corpus or encoder cannot be used, or a document gets no
            direction; the others end with status 2.
    """
    ranks = ranks or Ranks()
    corpus = ranks.together(lambda: _open_corpus(options))
    spec = ranks.together(options.spec)
    first = ranks.share(spec)
    ranks.together(lambda: _check_alike(spec, first))
    with ExitStack() as stack:
        stage = ranks.on_first(lambda: _open_stage(options, corpus, spec, stack))
        workspace = ranks.share(stage.workspace if stage and not stage.complete else None)
        if workspace is not None:
            shards = _shards(workspace, len(corpus), options.documents_per_shard)
            missing = ranks.share([shard for shard in shards if not shard.exists()])
            left = sorted({*shards} - {*missing}, key=lambda shard: shard.path)
            ranks.together(lambda: _check(left[ranks.rank :: ranks.size]))
            ranks.on_first(lambda: _prepare(spec, corpus, workspace, missing, ranks.size))
            share = missing[ranks.rank :: ranks.size]
            ranks.together(lambda: _write(options, spec, corpus, share, stage, ranks))
            peak = ranks.most(peak_memory_bytes())
            ranks.on_first(lambda: _finish(stage, corpus, shards, peak) if stage else None)
        manifest = ranks.share(stage.manifest if stage else None)
    assert manifest is not None
    return manifest


def _open_corpus(options: EmbedOptions) -> Corpus:
    """The corpus, its tokenizer checked."""
    corpus = Corpus(options.corpus, options.tokenizer)
    _ = corpus.tokenizer
    return corpus


def _check_alike(spec: EncoderSpec, first: EncoderSpec) -> None:
    """Refuse a rank whose machine would choose other settings than that of rank 0."""
    if not isinstance(spec, TransformerSpec) or not isinstance(first, TransformerSpec):
        return
    here, there = spec.machine, first.machine
    if here != there:
        raise InputError(
            f"this machine would run {spec.name} on {here.device} in {here.dtype}, that of rank 0 "
            f"on {there.device} in {there.dtype}; give --device and --dtype"
        )


def _open_stage(
    options: EmbedOptions, corpus: Corpus, spec: EncoderSpec, stack: ExitStack
) -> Stage:
    stage = Stage.open(
        options.output,
        "embed",
        options=spec.settings() | {"documents_per_shard": options.documents_per_shard},
        inputs=corpus.files(),
        resumable=True,
    )
    stack.enter_context(stage)
    stack.callback(_forget_encoder, stage.workspace)
    return stage


def _forget_encoder(workspace: Path) -> None:
    """Leave nothing behind that another encoder would have to be told from, before any shard."""
    if not any(workspace.glob("embeddings-*.npy")):
        shutil.rmtree(workspace / _PREPARED, ignore_errors=True)


def _shards(workspace: Path, documents: int, per_shard: int) -> list[Shard]:
    starts = range(0, documents, per_shard)
    return [
        Shard(
            workspace / shard_name(number, len(starts)),
            range(start, min(start + per_shard, documents)),
        )
        for number, start in enumerate(starts)
    ]


def _check(shards: Sequence[Shard]) -> None:
    """Read what an interrupted run has left."""
    for shard in shards:
        shard.check()


def _prepare(
    spec: EncoderSpec, corpus: Corpus, workspace: Path, missing: list[Shard], ranks: int
) -> None:
    """Make what the encoder's processes open, unless an interrupted run has made it."""
    if 0 < len(missing) < ranks:
        print(
            f"{len(missing)} shards for {ranks} ranks: the others have nothing to do; "
            "smaller --documents-per-shard makes more",
            file=sys.stderr,
        )
    directory = workspace / _PREPARED
    if missing and directory.exists():
        check_seal(directory)
    elif missing:
        with sealed_directory(directory) as partial:
            spec.prepare(corpus, partial)


def _write(
    options: EmbedOptions,
    spec: EncoderSpec,
    corpus: Corpus,
    shards: Sequence[Shard],
    stage: Stage | None,
    ranks: Ranks,
) -> None:
    """Write this rank's share of the missing shards."""
    pieces = [piece for shard in shards for piece in shard.pieces()]
    if not pieces:
        return
    prepared = shards[0].path.parent / _PREPARED
    workers = options.workers or _default_workers(spec, ranks) if spec.parallel else 1
    # Loading the libraries costs a process as much as a piece or two.
    workers = max(1, min(workers, len(pieces) // 2))
    title = f"embed with {spec.name}"
    title += f", share of rank 0 of {ranks.size}" if ranks.size > 1 else ""
    total = sum(map(len, pieces))
    shown = Progress(title, total, "documents") if ranks.rank == 0 else nullcontext()
    results = encode_pieces(spec, corpus, prepared, pieces, workers=workers, gpu=ranks.local_rank)
    with closing(results), shown as progress:
        for shard in shards:
            vectors, cut = [], 0
            for _, rows in zip(shard.pieces(), results, strict=False):
                ranks.check()
                vectors.append(rows.vectors)
                cut += rows.cut
                if progress is not None:
                    progress.update(len(rows.vectors))
            shard.write(np.concatenate(vectors), cut)
            if stage is not None:
                stage.checkpoint()


def _default_workers(spec: EncoderSpec, ranks: Ranks) -> int:
    """One process per core of this rank, as many as fit into three quarters of its memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks.local_size
    fitting = int(0.75 * memory / max(spec.memory_bytes, 1))
    return max(1, min(ranks.processors, fitting))


def _finish(stage: Stage, corpus: Corpus, shards: list[Shard], peak_memory: int) -> None:
    """Count, remove what was needed on the way, complete the output."""
    cut = sum(shard.cut() for shard in shards)
    dimensions = open_npy(shards[0].path).shape[1]
    for shard in shards:
        shard.record_path.unlink()
    shutil.rmtree(stage.workspace / _PREPARED, ignore_errors=True)
    stage.finish(
        counts={
            "documents": len(corpus),
            "dimensions": dimensions,
            "cut": cut,
            "corpus": corpus.fingerprints,
        },
        peak_memory=peak_memory,
    )
