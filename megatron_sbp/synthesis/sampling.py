"""Drawing one token per row from logits, each row with its own uniform number."""

from collections.abc import Sequence

import torch

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import Sampling

# The nucleus is looked for among tokens of at least so much probability; most fit the first.
_LEAST = (2**-11, 2**-14, 2**-17, 0.0)


def check_finite(logits: torch.Tensor, documents: Sequence[int]) -> None:
    """Refuse what no token can be drawn from; ``sample`` would draw token 0.

    Args:
        logits: Float [rows, vocabulary].
        documents: Number of the document of each row.

    Raises:
        InputError: If the largest of a row is no number, or infinite.
    """
    largest = logits.amax(-1)
    if not largest.isfinite().all():
        row = int(largest.isfinite().logical_not().nonzero()[0])
        raise InputError(
            f"document {documents[row]}: the model gives logits of {largest[row].item()}; its "
            "weights are damaged, or it computes in too narrow a type (--dtype)"
        )


def sample(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    Temperature first, then top-k, then top-p on what top-k left. A row's token depends on that row
    alone.

    Args:
        logits: Float [rows, vocabulary], checked by ``check_finite``.
        uniforms: float64 [rows] in [0, 1).
        sampling: How to draw.

    Returns:
        int64 [rows], token ids.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    if 0 < sampling.top_k < logits.shape[1]:
        head, ids = probabilities.topk(sampling.top_k, dim=-1)
        weights = head.double()
        nucleus = _nucleus(weights, sampling.top_p * weights.sum(-1, keepdim=True))
        return ids.gather(1, _invert(nucleus, uniforms)[:, None])[:, 0]
    if sampling.top_p == 1:
        return _invert(probabilities.double(), uniforms)
    tokens, complete = _draw_above(probabilities, uniforms, _LEAST[0], sampling.top_p)
    for least in _LEAST[1:]:
        rest = torch.nonzero(~complete)[:, 0]
        if not len(rest):
            break
        drawn, whole = _draw_above(probabilities[rest], uniforms[rest], least, sampling.top_p)
        tokens[rest], complete[rest] = drawn, whole
    return tokens


def _draw_above(
    probabilities: torch.Tensor, uniforms: torch.Tensor, least: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the nucleus among each row's tokens of more than ``least`` probability.

    Sorting these few takes a small part of the time of looking for the k largest of all.

    Returns:
        Token ids int64 [rows], and bool [rows]: whether the whole nucleus is among those tokens.
    """
    rows, ids = torch.nonzero(probabilities > least, as_tuple=True)
    counts = torch.bincount(rows, minlength=len(probabilities))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = len(probabilities), max(int(counts.max()), 1)
    head, head_ids = probabilities.new_zeros(shape), ids.new_zeros(shape)
    head[rows, places], head_ids[rows, places] = probabilities[rows, ids], ids
    # Stable, so that the order of equal ones does not depend on the other rows.
    head, order = head.sort(dim=-1, descending=True, stable=True)
    weights = head.double()
    # A row without any such token has no place; nor is its nucleus complete.
    place = _invert(_nucleus(weights, top_p), uniforms).clamp_(max=shape[1] - 1)[:, None]
    complete = weights.cumsum(-1)[:, -1] >= top_p
    return head_ids.gather(1, order.gather(1, place))[:, 0], complete


def _nucleus(weights: torch.Tensor, mass: torch.Tensor | float) -> torch.Tensor:
    """The first weights, float64 [rows, n], that together reach a mass; zero instead of others."""
    return torch.where(weights.cumsum(-1) - weights < mass, weights, 0.0)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Places int64 [rows] at which the cumulative float64 weights [rows, n] pass u times their sum.

    A place of weight zero is never drawn.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    targets = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]
