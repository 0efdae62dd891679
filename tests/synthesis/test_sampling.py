import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis import sampling
from megatron_sbp.synthesis.engine import Sampling
from megatron_sbp.synthesis.sampling import sample


def warped(logits: torch.Tensor, how: Sampling) -> np.ndarray:
    """Probabilities that Transformers draws from with the same options, float64."""
    scores = logits.double()
    scores = TemperatureLogitsWarper(how.temperature)(None, scores)
    if how.top_k:
        scores = TopKLogitsWarper(how.top_k)(None, scores)
    if how.top_p < 1:
        scores = TopPLogitsWarper(how.top_p)(None, scores)
    return torch.softmax(scores, -1).numpy()


@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.sampled_from([3, 50, 700, 1500]),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 600, 5000]),
)
@settings(max_examples=60, deadline=None)
def test_tokens_have_the_probabilities_that_transformers_gives_them(
    seed: int, vocabulary: int, spread: float, temperature: float, top_p: float, top_k: int
) -> None:
    """An even grid of uniform numbers draws every token as often as its probability says."""
    how = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    torch.manual_seed(seed)
    logits = spread * torch.randn(1, vocabulary)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = sample(logits.expand(4000, -1), grid, how).numpy()
    frequency = np.bincount(drawn, minlength=vocabulary) / 4000
    np.testing.assert_allclose(frequency, warped(logits, how)[0], atol=1.01 / 4000)


def test_rows_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same row gives the same token whatever rows are beside it: flat, peaked or equal."""
    monkeypatch.setattr(sampling, "_LEAST", (first := 2**-7, last := 2**-9, 0.0))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 3000, generator=generator) * torch.rand(200, 1, generator=generator)
    logits[::3] *= 20
    uniforms = torch.rand(200, dtype=torch.float64, generator=generator)
    how = Sampling(temperature=1.0, top_p=0.9, top_k=0)
    together = sample(logits, uniforms, how)
    apart = [sample(logits[[row]], uniforms[[row]], how) for row in range(200)]
    assert torch.equal(together, torch.cat(apart))
    # Rows of every kind were there: nuclei that end above the first bound, between, and below all.
    distributions = torch.softmax(logits.double(), -1).numpy()
    smallest = np.where(warped(logits, how) > 0, distributions, 1).min(1)
    assert (smallest > first).any() and (smallest < last).any()
    assert ((smallest < first) & (smallest > last)).any()


def test_equal_probabilities_are_drawn_in_the_order_of_their_ids() -> None:
    """Also beside rows with more tokens: a sort of another length must not change their order."""
    logits = torch.zeros(2, 5000)
    logits[0, 100:400] = 20
    logits[1] = 5 * torch.randn(5000, generator=torch.Generator().manual_seed(6))
    how = Sampling(temperature=1.0, top_p=0.9, top_k=0)
    for place in range(0, 270, 7):
        uniforms = torch.full((2,), (place + 0.5) / 270, dtype=torch.float64)
        assert sample(logits, uniforms, how)[0] == 100 + place
        assert sample(logits[:1], uniforms[:1], how)[0] == 100 + place


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(2))
    how = Sampling(temperature=0.0, top_p=0.9, top_k=0)
    drawn = sample(logits, torch.rand(20, dtype=torch.float64), how)
    assert torch.equal(drawn, logits.argmax(1))


@pytest.mark.parametrize("uniform", [0.0, float(np.nextafter(1.0, 0.0))])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform: float, top_p: float) -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [3, 500]] = torch.tensor([1.0, 2.0])
    how = Sampling(temperature=1.0, top_p=top_p, top_k=0)
    assert sample(logits, torch.tensor([uniform], dtype=torch.float64), how).item() in (3, 500)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    logits = torch.randn(5, 70, generator=torch.Generator().manual_seed(3))
    logits[:, 11] = float("-inf")  # that is a token which is never drawn
    sampling.check_finite(logits, range(5))
    logits[3, 40] = value
    with pytest.raises(InputError, match=f"document 13: the model gives logits of {value}"):
        sampling.check_finite(logits, range(10, 15))
