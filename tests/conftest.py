"""Fixtures that several rooms' tests share."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.preprocess import Options, preprocess
from megatron_sbp.manifest import Manifest

# No test depends on a clock.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

# Tests run beside each other: threads that wait must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parent.parent
MEGATRON_MODELS = ROOT / "tests" / "models" / "megatron_models.py"


def run_command(*command: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command of the repository with this interpreter and capture what it says."""
    launcher = [] if ranks == 1 else [Path(sys.executable).parent / "mpiexec", "-n", str(ranks)]
    return subprocess.run(
        [*map(str, launcher), sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """A file with its last bit flipped, as a disk that fails may do it."""
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def torchrun(*command: object, processes: int = 2) -> None:
    """Run a script of the tests in several processes; it must end well."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launcher, "--nproc-per-node", str(processes), *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]


@pytest.fixture(scope="session")
def words_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """About 260 documents over 40 topics, a fifth of them held out.

    Documents of a topic share its words, so d1 says something about d2.
    """
    directory = tmp_path_factory.mktemp("words")
    source = random.Random(7)
    vocabulary = [f"word{number}" for number in range(400)]
    topics = [source.sample(vocabulary, 12) for _ in range(40)]
    with open(directory / "documents.jsonl", "w") as file:
        for number in range(260):
            topic = topics[number % len(topics)]
            text = " ".join(source.choice(topic) for _ in range(source.randint(5, 60)))
            file.write(json.dumps({"text": text}) + "\n")
    prefix = directory / "corpus" / "words"
    preprocess(
        Options(
            input=[str(directory / "documents.jsonl")],
            output_prefix=str(prefix),
            train_tokenizer=512,  # the same padded vocabulary for every tensor-parallel size
            heldout_share=0.2,
            workers=1,
        )
    )
    return Corpus([prefix, f"{prefix}-heldout"])


@pytest.fixture(scope="session")
def words_pairs(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair store over ``words_corpus``: up to four documents sharing most words, per document."""
    bags = [set(text.split()) for text in words_corpus.texts(range(len(words_corpus)))]
    rows = []
    for anchor, bag in enumerate(bags):
        overlaps = [
            (len(bag & other) / len(bag | other), neighbor)
            for neighbor, other in enumerate(bags)
            if neighbor != anchor
        ]
        best = sorted(overlaps, key=lambda row: (-row[0], row[1]))[:4]
        rows += [(anchor, neighbor, score) for score, neighbor in best if score > 0.3]
    directory = tmp_path_factory.mktemp("pairs") / "pairs"
    write_pairs(directory, words_corpus, rows)
    return directory


def write_pairs(directory: Path, corpus: Corpus, rows: list[tuple[int, int, float]]) -> None:
    """Write a pair store by the letter of docs/formats.md."""
    directory.mkdir(parents=True)
    rows = sorted(rows, key=lambda row: (row[0], -row[2], row[1]))
    anchors, neighbors, scores = zip(*rows, strict=True)
    np.save(directory / "anchor.npy", np.array(anchors, dtype=np.int64))
    np.save(directory / "neighbor.npy", np.array(neighbors, dtype=np.int64))
    np.save(directory / "score.npy", np.array(scores, dtype=np.float32))
    counts = {"pairs": len(rows), "corpus": corpus.fingerprints}
    Manifest(stage="mine", options={}, inputs={}, counts=counts).write(directory)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints saved with tensor or pipeline parallelism, and Megatron's own logits."""
    directory = tmp_path_factory.mktemp("checkpoints")
    torchrun(MEGATRON_MODELS, directory)
    return directory
