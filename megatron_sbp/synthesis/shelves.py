"""Keys and values of the documents at work, and attention over them.

Documents lie on shelves by length: all on a shelf have room for the same number of tokens, and one
that has filled its room moves to the next shelf. Attention runs over one block of a shelf at a
time, so that a short document does not pay for a long one, and what it computes for a document
follows from that document's length alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from megatron_sbp.synthesis.engine import Request

ATTENTION = "megatron_sbp_shelves"
"""The name by which Transformers knows ``attend``."""


@dataclass(kw_only=True, slots=True, eq=False)
class Document:
    """A document at work."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    """What has been drawn so far."""

    @property
    def position(self) -> int:
        """Position of the newest token, which is the one that the model reads next."""
        return len(self.request.prompt) - 1 + len(self.tokens)

    @property
    def newest(self) -> int:
        """The newest token."""
        return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

    @property
    def uniform(self) -> float:
        """The number that decides the next token."""
        return float(self.request.uniforms[len(self.tokens)])


@dataclass(kw_only=True, slots=True, frozen=True)
class Sizes:
    """How much room documents are given."""

    least: int
    """Tokens of the first shelf; every other one has a multiple."""
    steps: int
    """Shelves from one power of two to the next."""
    rows: int
    """Most documents of a block."""
    slots: int
    """Most tokens of a block that has more than one document."""

    def room(self, tokens: int) -> int:
        """The shelf for so many tokens: how many its documents have room for."""
        below = 1 << (tokens - 1).bit_length() - 1 if tokens > self.least else self.least
        step = max(below // self.steps, self.least)
        return -(-tokens // step) * step


class Caller(Protocol):
    """What ``attend`` does its work with, in one call of the model."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """Keep the new keys and values, and attend.

        Args:
            layer: Of the model.
            query: [rows, heads, tokens, channels].
            key: [rows, groups, tokens, channels].
            value: [rows, groups, tokens, channels].
            scale: Factor of the scores.

        Returns:
            [rows, tokens, heads, channels].
        """


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: torch.Tensor | None,
    *,
    caller: Caller,
    scaling: float | None = None,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of Transformers that leaves everything to the caller of the model."""
    layer: int = module.layer_idx
    return caller.attend(layer, query, key, value, scaling), None


transformers.AttentionInterface.register(ATTENTION, attend)


class Shapes:
    """A first call of the model, which shows what it keeps of a token."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By layer its keys and values."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """See ``Caller``."""
        self.seen[layer] = key, value
        return _attend_causally(query, key, value, scale)


def _attend_causally(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
    ).transpose(1, 2)


class Block:
    """Keys and values of some rows, [layers, rows, groups, columns, channels].

    Args:
        layers: Of the model.
        rows: Documents.
        columns: Tokens of a document.
        key: What is kept of a token in a layer, [1, groups, 1, channels].
        value: The same.
    """

    def __init__(
        self, layers: int, rows: int, columns: int, key: torch.Tensor, value: torch.Tensor
    ):
        # Zeros, as what is masked is multiplied with a weight of zero.
        self.keys = key.new_zeros(layers, rows, key.shape[1], columns, key.shape[3])
        self.values = value.new_zeros(layers, rows, value.shape[1], columns, value.shape[3])

    def copy(self, row: int, source: "Block", source_row: int) -> None:
        """Copy a row of a block with as many columns or fewer."""
        columns = source.keys.shape[3]
        self.keys[:, row, :, :columns] = source.keys[:, source_row]
        self.values[:, row, :, :columns] = source.values[:, source_row]


class Shelf:
    """Documents with room for the same number of tokens.

    Args:
        columns: That number.
        rows: Of a block.
        like: Layers, and keys and values of a token in a layer; see ``Block``.
    """

    def __init__(self, columns: int, rows: int, like: tuple[int, torch.Tensor, torch.Tensor]):
        self.columns = columns
        self.documents: list[Document] = []
        """In the order of blocks and rows; without gaps."""
        self._rows, self._like = rows, like
        self.blocks: list[Block] = []

    def add(self, document: Document) -> tuple[Block, int]:
        """Give a document a row; the block and the row in it."""
        if len(self.documents) == len(self.blocks) * self._rows:
            layers, key, value = self._like
            self.blocks.append(Block(layers, self._rows, self.columns, key, value))
        self.documents.append(document)
        return self.place(len(self.documents) - 1)

    def place(self, index: int) -> tuple[Block, int]:
        """Block and row of a document."""
        block, row = divmod(index, self._rows)
        return self.blocks[block], row

    def remove(self, index: int) -> None:
        """Take a document off; the last one of the shelf takes its row."""
        last = self.documents.pop()
        if index < len(self.documents):
            self.documents[index] = last
            block, row = self.place(index)
            block.copy(row, *self.place(len(self.documents)))
        # One empty block stays, or it would come and go with every document.
        if len(self.blocks) * self._rows - len(self.documents) >= 2 * self._rows:
            self.blocks.pop()

    def parts(self) -> Iterator[tuple[Block, Sequence[Document]]]:
        """Blocks and the documents in their first rows."""
        for number, start in enumerate(range(0, len(self.documents), self._rows)):
            yield self.blocks[number], self.documents[start : start + self._rows]


class Shelves:
    """All shelves.

    Memory: a document has room for at most 1 + 1 / ``steps`` times its tokens, or for ``least``,
    and a shelf that was ever used keeps fewer than two blocks without documents. So it follows the
    documents at work and their lengths, however long a run is.

    Args:
        layers: Of the model.
        key: What is kept of a token in a layer, [1, groups, 1, channels].
        value: The same.
        sizes: How much room documents are given.
    """

    def __init__(self, layers: int, key: torch.Tensor, value: torch.Tensor, sizes: Sizes):
        self._like = layers, key, value
        self._sizes = sizes
        self._shelves: dict[int, Shelf] = {}

    def __len__(self) -> int:
        return sum(len(shelf.documents) for shelf in self._shelves.values())

    def __iter__(self) -> Iterator[Shelf]:
        return iter(self._shelves.values())

    def add(self, document: Document) -> tuple[Block, int]:
        """Give a document room for all up to its newest token; the block and the row in it."""
        columns = self._sizes.room(document.position + 1)
        if columns not in self._shelves:
            rows = min(max(self._sizes.slots // columns, 1), self._sizes.rows)
            self._shelves[columns] = Shelf(columns, rows, self._like)
        return self._shelves[columns].add(document)

    def make_room(self) -> None:
        """Move every document that has filled its room."""
        for shelf in list(self):
            for index in reversed(range(len(shelf.documents))):
                document = shelf.documents[index]
                if document.position >= shelf.columns:
                    block, row = self.add(document)
                    block.copy(row, *shelf.place(index))
                    shelf.remove(index)


class Prompts:
    """A call of the model that reads prompts, padded on the right, into the rows of documents.

    Args:
        places: By row of the call the document's block, row in it, and tokens to keep.
    """

    def __init__(self, places: Sequence[tuple[Block, int, int]]):
        self._places = places

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """See ``Caller``."""
        for number, (block, row, tokens) in enumerate(self._places):
            block.keys[layer, row, :, :tokens] = key[number, :, :tokens]
            block.values[layer, row, :, :tokens] = value[number, :, :tokens]
        return _attend_causally(query, key, value, scale)


@dataclass(kw_only=True, slots=True, eq=False)
class _Part:
    """Rows of a step that lie in one block."""

    rows: slice
    """Among those of the step."""
    block: Block
    own: torch.Tensor
    """int64 [rows], the rows of the block."""
    positions: torch.Tensor
    """int64 [rows], where the new tokens stand."""
    mask: torch.Tensor
    """[rows, 1, 1, columns], zero up to there and minus infinity after it."""


class Step:
    """A call of the model that reads the newest token of every document.

    Args:
        shelves: With the documents, whose order the rows of the call have.
        positions: int64 [rows], of the newest tokens; rows beyond the documents are idle.
    """

    def __init__(self, shelves: Shelves, positions: torch.Tensor, dtype: torch.dtype):
        self._parts = []
        start = 0
        for shelf in shelves:
            columns = torch.arange(shelf.columns, device=positions.device)
            for block, documents in shelf.parts():
                rows = slice(start, start + len(documents))
                hidden = columns > positions[rows, None]
                mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
                part = _Part(
                    rows=rows,
                    block=block,
                    own=torch.arange(len(documents), device=positions.device),
                    positions=positions[rows],
                    mask=mask.masked_fill_(hidden, -torch.inf)[:, None, None],
                )
                self._parts.append(part)
                start += len(documents)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """See ``Caller``."""
        rows, heads, _, channels = query.shape
        # Queries that share keys and values stand as the tokens of one head.
        query = query.reshape(rows, key.shape[1], -1, channels)
        result = value.new_zeros(rows, 1, heads, value.shape[3])
        for part in self._parts:
            keys, values = part.block.keys[layer], part.block.values[layer]
            keys[part.own, :, part.positions] = key[part.rows, :, 0]
            values[part.own, :, part.positions] = value[part.rows, :, 0]
            count = len(part.own)
            result[part.rows] = scaled_dot_product_attention(
                query[part.rows], keys[:count], values[:count], attn_mask=part.mask, scale=scale
            ).reshape(count, 1, heads, -1)
        return result
