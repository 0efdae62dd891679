"""Drawing one token per row from logits, each row with its own uniform number."""

import torch

from megatron_sbp.synthesis.engine import Sampling

_HEADS = (64, 512)  # Most nuclei fit the first; the few rows that fit neither are sorted in full.


def sample(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    Temperature first, then top-k, then top-p on what top-k left. A row's token depends on that row
    alone.

    Args:
        logits: Float [rows, vocabulary].
        uniforms: float64 [rows] in [0, 1).
        sampling: How to draw.

    Returns:
        int64 [rows], token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    vocabulary = logits.shape[1]
    if sampling.top_p == 1 and not 0 < sampling.top_k < vocabulary:
        return _invert(probabilities.double(), uniforms)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    rest = torch.arange(len(logits), device=logits.device)
    heads = (sampling.top_k,) if sampling.top_k else _HEADS
    for width in (*(head for head in heads if head < vocabulary), vocabulary):
        drawn, complete = _draw_from_head(probabilities[rest], uniforms[rest], width, sampling)
        tokens[rest] = drawn
        rest = rest[~complete]
        if not len(rest):
            break
    return tokens


def _draw_from_head(
    probabilities: torch.Tensor, uniforms: torch.Tensor, width: int, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the nucleus among the ``width`` most probable tokens of each row.

    Returns:
        Token ids int64 [rows], and bool [rows]: whether the whole nucleus is among those tokens.
    """
    head, ids = probabilities.topk(width, dim=-1)
    weights = head.double()
    cumulative = weights.cumsum(-1)
    whole = cumulative[:, -1:] if sampling.top_k else 1.0
    mass = sampling.top_p * whole
    nucleus = torch.where(cumulative - weights < mass, weights, 0.0)
    places = _invert(nucleus, uniforms)
    return ids.gather(1, places[:, None])[:, 0], (cumulative[:, -1:] >= mass)[:, 0]


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Places int64 [rows] at which the cumulative float64 weights [rows, n] pass u times their sum.

    A place of weight zero is never drawn.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    targets = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]
