"""ASFT: the gradient of DFT, and a divergence from the base model as torch computes it."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from raysft.objectives import DistributionObjective, build
from raysft.objectives.base import Rows

seeds = st.integers(0, 2**31)


def rows_of(seed: int, n: int = 6, v: int = 30) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    logits, reference = (2 * torch.randn(n, v, generator=rng, dtype=torch.float64) for _ in range(2))
    return Rows(logits, torch.randint(0, v, (n,), generator=rng), reference)


def asft(kl_weight: float) -> DistributionObjective:
    objective = build("asft", kl_weight=kl_weight)
    assert isinstance(objective, DistributionObjective)
    return objective


def assert_is(objective: DistributionObjective, rows: Rows, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Value and gradient of the objective against a loss [C] written in terms of the logits [C, V]."""
    leaf = rows.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    torch.testing.assert_close(objective.token_loss(rows), loss(rows.logits), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.token_gradient(rows), gradient, rtol=1e-10, atol=1e-12)


@given(seed=seeds, kl_weight=st.floats(0, 100))
def test_asft_is_dft_and_torchs_divergence(seed: int, kl_weight: float) -> None:
    rows = rows_of(seed)
    assert rows.reference is not None
    p = rows.logits.softmax(1)[torch.arange(6), rows.labels]
    base = rows.reference.log_softmax(1)

    def loss(z: torch.Tensor) -> torch.Tensor:
        divergence = kl_div(z.log_softmax(1), base, log_target=True, reduction="none").sum(1)
        return p * cross_entropy(z, rows.labels, reduction="none") + kl_weight * divergence

    assert_is(asft(kl_weight), rows, loss)


def test_asft_in_plain_numbers() -> None:
    """p = (1/4, 3/4), the base model's (1/2, 1/2), label 0."""
    rows = Rows(
        torch.tensor([[0.0, math.log(3)]], dtype=torch.float64),
        torch.tensor([0]),
        torch.tensor([[5.0, 5.0]], dtype=torch.float64),
    )
    divergence = (math.log(0.5 / 0.25) + math.log(0.5 / 0.75)) / 2
    assert asft(0.3).token_loss(rows).item() == pytest.approx(0.25 * math.log(4) + 0.3 * divergence, rel=1e-12)
    pull = 0.25 * 0.75 + 0.3 * 0.25
    assert asft(0.3).token_gradient(rows)[0].tolist() == pytest.approx([-pull, pull], rel=1e-12)


@given(seed=seeds)
def test_asft_without_an_anchor_is_dft(seed: int) -> None:
    rows = rows_of(seed)
    dft = build("dft")
    torch.testing.assert_close(asft(0).token_loss(rows), dft.loss(rows.logp), rtol=1e-12, atol=0)
    expected = rows.softmax_minus_onehot() * dft.weight(rows.logp)[:, None]
    torch.testing.assert_close(asft(0).token_gradient(rows), expected, rtol=1e-12, atol=1e-15)


@given(seed=seeds, shift=st.floats(-5, 5))
def test_at_the_base_model_itself_the_anchor_does_nothing(seed: int, shift: float) -> None:
    """Whatever is added to all of the base model's logits."""
    rows = rows_of(seed)
    anchored = Rows(rows.logits, rows.labels, rows.logits + shift)
    for method in ("token_loss", "token_gradient"):
        with_anchor, without = getattr(asft(7.0), method)(anchored), getattr(asft(0), method)(rows)
        torch.testing.assert_close(with_anchor, without, rtol=1e-10, atol=1e-12)


def test_the_base_model_gets_no_gradient() -> None:
    rows = rows_of(0)
    assert rows.reference is not None
    assert asft(1).needs_reference
    logits, reference = rows.logits.clone().requires_grad_(), rows.reference
    asft(1).token_loss(Rows(logits, rows.labels, reference)).sum().backward()
    assert logits.grad is not None
    assert reference.grad is None


def test_asft_without_a_base_model_is_a_mistake() -> None:
    rows = rows_of(0)
    with pytest.raises(AssertionError, match="asft needs the base model's logits"):
        asft(1).token_loss(Rows(rows.logits, rows.labels))
