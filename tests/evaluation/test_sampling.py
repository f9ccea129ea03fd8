"""Draws that follow the softmax, by random numbers that belong to a sequence."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.evaluation.sampling import draw, uniforms


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax(temperature: float) -> None:
    """Shares of 40,000 draws within five standard errors of softmax(scores / temperature)."""
    rows = 40_000
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    numbers = uniforms([(0, row, 0) for row in range(rows)], 1)[:, 0]
    taken, _ = draw(scores.expand(rows, -1), numbers, temperature)
    shares = torch.bincount(taken, minlength=5) / rows
    expected = (scores / temperature).softmax(-1)
    assert torch.all((shares - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt())


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 255, 256, 257, 1000]), st.floats(0.2, 3), st.floats(0.1, 20))
def test_the_token_is_where_the_distribution_function_passes_the_number(
    seed: int, vocabulary: int, temperature: float, spread: float
) -> None:
    """Against float64 without blocks: a token whose interval holds the number, to round-off; some scores are -inf."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(6, vocabulary, generator=generator)
    scores[:, 1::3] = -torch.inf
    numbers = torch.rand(6, generator=generator, dtype=torch.float64)
    numbers[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    tokens, entropy = draw(scores, numbers, temperature)
    p = (scores.double() / temperature).softmax(-1)
    passed = p.cumsum(-1)
    upper = passed.gather(1, tokens[:, None])[:, 0]
    lower = upper - p.gather(1, tokens[:, None])[:, 0]
    assert ((lower - 1e-5 <= numbers) & (numbers <= upper + 1e-5)).all()
    assert (p.gather(1, tokens[:, None]) > 0).all()
    logp = p.clamp(min=1e-300).log()
    torch.testing.assert_close(entropy.double(), -(p * logp).sum(-1), rtol=1e-4, atol=1e-4)


def test_temperature_0_takes_the_largest() -> None:
    scores = torch.randn(5, 300)
    tokens, entropy = draw(scores, torch.rand(5, dtype=torch.float64), 0)
    assert torch.equal(tokens, scores.argmax(-1))
    logp = scores.double().log_softmax(-1)
    torch.testing.assert_close(entropy.double(), -(logp.exp() * logp).sum(-1), rtol=1e-5, atol=1e-5)


def test_streams_are_their_own() -> None:
    streams = list(product(range(3), range(3), range(3)))
    numbers = uniforms(streams, 8).numpy()
    assert len(np.unique(numbers)) == numbers.size
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.array_equal(uniforms(streams[5:6], 4).numpy()[0], numbers[5, :4])


@pytest.mark.parametrize("vocabulary", [10, 256, 1000])
@pytest.mark.parametrize("temperature", [0, 0.7, 1])
def test_scores_that_are_no_numbers_spoil_their_own_row_only(vocabulary: int, temperature: float) -> None:
    scores = torch.randn(4, vocabulary)
    numbers = torch.rand(4, dtype=torch.float64)
    expected, _ = draw(scores, numbers, temperature)
    spoilt = scores.clone()
    spoilt[0], spoilt[1, 3], spoilt[2, 3] = torch.nan, torch.nan, torch.inf
    tokens, entropy = draw(spoilt, numbers, temperature)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    assert tokens[3] == expected[3]
    assert entropy[:3].isnan().all()
    assert entropy[3].isfinite()
