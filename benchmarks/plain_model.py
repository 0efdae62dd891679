"""A language model and its training in plain PyTorch, with the layers that Megatron is given."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(kw_only=True, slots=True)
class Shape:
    """What a model is made of; the names are those of Megatron's arguments."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    rotary_base: int
    vocab_size: int
    seq_length: int


class Attention(nn.Module):
    """Causal attention with grouped queries, norms of queries and keys, and rotary positions."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.groups = shape.num_attention_heads, shape.num_query_groups
        self.channels = shape.hidden_size // self.heads
        width = (self.heads + 2 * self.groups) * self.channels
        self.qkv = nn.Linear(shape.hidden_size, width, bias=False)
        self.projection = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.query_norm = nn.RMSNorm(self.channels, eps=1e-5)
        self.key_norm = nn.RMSNorm(self.channels, eps=1e-5)

    def forward(self, hidden: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """[rows, length, hidden] to the same; angles [length, channels]."""
        rows, length, _ = hidden.shape
        qkv = self.qkv(hidden).view(rows, length, -1, self.channels).transpose(1, 2)
        query, key, value = qkv.split([self.heads, self.groups, self.groups], dim=1)
        query = _rotate(self.query_norm(query), angles)
        key = _rotate(self.key_norm(key), angles)
        context = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.heads != self.groups
        )
        return self.projection(context.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a SwiGLU network, each with a norm before it and a residual around it."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.attention = Attention(shape)
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        self.mlp_norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        self.gate_and_up = nn.Linear(shape.hidden_size, 2 * shape.ffn_hidden_size, bias=False)
        self.down = nn.Linear(shape.ffn_hidden_size, shape.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """[rows, length, hidden] to the same."""
        hidden = hidden + self.attention(self.attention_norm(hidden), angles)
        gate, up = self.gate_and_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)


class Model(nn.Module):
    """A decoder whose output layer shares the embedding's weight, as Megatron's does."""

    angles: torch.Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        channels = shape.hidden_size // shape.num_attention_heads
        powers = torch.arange(0, channels, 2) / channels
        angles = torch.arange(shape.seq_length)[:, None] / shape.rotary_base**powers
        self.register_buffer("angles", torch.cat([angles, angles], dim=1), persistent=False)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of [rows, length] tokens."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, self.angles)
        logits = F.linear(self.norm(hidden), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _rotate(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of [rows, heads, length, channels]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Training:
    """A model, its optimizer, and random tokens.

    Args:
        shape: Of the model.
        rows: Of a micro-batch.
        batch: Rows of a step.
    """

    def __init__(self, shape: Shape, rows: int, batch: int):
        self._model = Model(shape)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
        )
        self._size = (rows, shape.seq_length + 1)
        self._parts = batch // rows
        self._vocabulary = shape.vocab_size

    def step(self) -> float:
        """One step; its loss."""
        total = 0.0
        for _ in range(self._parts):
            rows = torch.randint(self._vocabulary, self._size)
            loss = self._model(rows[:, :-1], rows[:, 1:]) / self._parts
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total
