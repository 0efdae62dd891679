"""More than 2^31 of everything in files with holes, and losses that are no numbers."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, idx_path
from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation import report_content
from megatron_sbp.evaluation.report_boxes import open_boxes
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.pairs import COLUMNS, ColumnWriter, Pairs, PairStore, create_columns
from megatron_sbp.mining.related import related
from megatron_sbp.synthesis.store import COLUMNS as PROVENANCE
from megatron_sbp.synthesis.store import SyntheticCorpus, column_path
from megatron_sbp.training.pairs.packing import Layout, best_fit
from tests.evaluation.boxes import write_run
from tests.hostile.fuzz import cheap
from tests.training.forked import pretrain
from tests.training.runs import data

ROWS = 2**32 + 10  # Of a pair store: 86 GB that no disk has to hold.
FIRST = 2**31 + 5  # Id of the first document that has pairs of its own.
LONGEST = 2**31 - 1  # Tokens of a document, which int32 can just count.


def test_a_pair_store_above_2_to_the_32_rows(tmp_path: Path) -> None:
    """Holes are pairs of document 0; the last rows are written, found and read."""
    create_columns(tmp_path, ROWS)
    last = Pairs(
        np.array([FIRST, FIRST, FIRST + 2**32]),
        np.array([3, FIRST + 1, 4]),
        np.array([0.9, 0.8, 0.7], np.float32),
    )
    with ColumnWriter(tmp_path) as writer:
        writer.write(ROWS - 3, last)
    with cheap():
        store = PairStore(tmp_path, check_rows=False)
        assert len(store) == ROWS
        rows = store[slice(ROWS - 4, ROWS)]
        assert rows.anchor.tolist() == [0, FIRST, FIRST, FIRST + 2**32]
        assert rows.neighbor.tolist() == [0, 3, FIRST + 1, 4]
        begin, end = np.searchsorted(store.anchor, [FIRST, FIRST + 1]).tolist()
        assert (begin, end) == (ROWS - 3, ROWS - 1)
        ids = np.array([FIRST + 2**32, FIRST])
        beside = related(
            store, ids, 2, lambda found: np.ones(len(found), bool), excluded=np.array([0, 3])
        )
        assert beside.tolist() == [[4, -1], [FIRST + 1, -1]]
    assert sum((tmp_path / f"{name}.npy").stat().st_blocks for name in COLUMNS) < 1 << 12


def test_places_of_more_than_2_to_the_32_pieces() -> None:
    """Rows are counted, not listed, so as many as there could ever be are laid out at once."""
    histogram = np.zeros(11, dtype=np.int64)
    histogram[7], histogram[3], histogram[2] = 2**33 + 1, 2**32 + 5, 2**34 + 3
    layout = Layout(best_fit(histogram))
    assert layout.numbers() == {7: 2**33 + 1, 3: 2**32 + 5, 2: 2**34 + 3}
    pieces, tokens = int(histogram.sum()), int(histogram @ np.arange(11))
    assert tokens <= 10 * layout.rows < tokens * 1.3
    ends = [
        layout.places(length, np.array([0, count - 1])).tolist()
        for length, count in layout.numbers().items()
    ]
    assert min(map(min, ends)) >= 0 and 2**32 < max(map(max, ends)) < pieces


def write_long(prefix: Path, tail: list[int]) -> None:
    """Two documents of 2^31 - 1 zeros in holes, then a short one."""
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.append(tail)
    lengths = np.array([LONGEST, LONGEST, len(tail)], np.int32)
    begins = 2 * np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))
    head = idx_path(prefix).read_bytes()[:18] + struct.pack("<QQ", 3, 4)
    arrays = (lengths, begins, np.arange(4))
    idx_path(prefix).write_bytes(head + b"".join(array.tobytes() for array in arrays))
    with open(bin_path(prefix), "wb") as file:
        file.seek(int(begins[-1]))
        file.write(np.array(tail, np.uint16).tobytes())


def test_synthetic_documents_behind_2_to_the_32_tokens(tmp_path: Path) -> None:
    """Seeds are documents with ids above 2^31 of a corpus of many prefixes."""
    (tmp_path / "real").mkdir()
    (tmp_path / "new").mkdir()
    many, last = tmp_path / "real" / "many", tmp_path / "real" / "last"
    with IndexedWriter(many, np.uint16) as writer:
        writer.extend([], np.zeros(1 << 20, dtype=np.int64))
    with IndexedWriter(last, np.uint16) as writer:
        writer.append([1, 2])
        writer.append([3])
    real = Corpus([*[many] * 2049, last])
    assert len(real) > 2**31
    prefix = tmp_path / "new" / "c"
    write_long(prefix, [7, 8, 9])
    seeds = [len(real) - 1, len(real) - 2, len(real) - 1]
    for name, dtype in PROVENANCE.items():
        values = seeds if name == "seed" else [1, 1, 1]
        np.save(column_path(prefix, name), np.array(values, dtype))
    counts = {"corpus": real.fingerprints}
    Manifest(stage="synthesize", options={}, inputs={}, counts=counts).write(tmp_path / "new")
    made = SyntheticCorpus([prefix])
    assert made.documents.num_tokens == 2 * LONGEST + 3
    assert made.documents.tokens(2).tolist() == [7, 8, 9]
    assert made.seeds_in(real).tolist() == seeds
    assert made.seeds_in(Corpus([last, many])).tolist() == [1, 0, 1]
    assert [real.tokens(seed).tolist() for seed in seeds] == [[3], [1, 2], [3]]


# Losses


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(
    words_corpus: Corpus, tmp_path: Path
) -> None:
    """The first step's huge rate leaves weights from which the second has no finite gradient."""
    save = tmp_path / "run"
    flags = ["--train-iters", "4", "--save", str(save), "--data-cache-path", str(tmp_path / "c")]
    huge = ["--lr", "1e30", "--min-lr", "1e30", "--clip-grad", "0"]
    finished = pretrain(*flags, *huge, *data(words_corpus))
    assert finished.returncode == 16, finished.stderr  # Megatron's
    (said,) = re.findall("error: step (.*)", finished.stderr)
    assert said.startswith("2: the loss or a gradient is not a finite number")
    assert not (save / "manifest.json").exists()
    assert (save / "latest_checkpointed_iteration.txt").read_text() == "1"
    written = map(json.loads, (save / "metrics.jsonl").read_text().splitlines())
    assert {line["iteration"] for line in written} == {1}


def test_a_report_names_the_step_of_a_loss_that_is_no_number(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "lm", [])
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        for step, value in ((41, float("inf")), (40, float("nan")), (50, float("nan"))):
            line = {"iteration": step, "metric": "lm loss", "value": value}
            file.write(json.dumps(line) + "\n")
    boxes = open_boxes({"baseline": [str(tmp_path / "run")]}, None)
    content = {"ledger": [], "losses": report_content.losses(boxes)}
    (warning,) = report_content.warnings(content)
    assert warning == (
        "baseline: its training loss is not a finite number in 3 steps, the first of them 40"
    )


@pytest.mark.parametrize("documents", [2**31 + 4, 2**33])
def test_embeddings_of_many_documents_are_named_in_full(documents: int, tmp_path: Path) -> None:
    shard = open_memmap(tmp_path / shard_name(0, 1), "w+", np.float16, (documents, 1))
    shard[-1] = np.nan
    shard[-2] = 1
    shard.flush()
    embeddings = Embeddings(tmp_path)
    assert embeddings.rows(documents - 2, documents - 1).tolist() == [[1]]
    with pytest.raises(InputError, match=f"document {documents - 1} has length nan"):
        embeddings.rows(documents - 2, documents)
