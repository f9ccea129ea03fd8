"""DFT, TALR and InfoSFT: -log p times a weight that gets no gradient, against the formulas of their sources."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.objectives import Objective, build

probabilities = st.floats(1e-9, 1 - 1e-6)


def assert_weighs(objective: Objective, p: float, weight: Callable[[float], float]) -> None:
    """Loss and slope at p are -log p and 1 times the weight; autograd of the loss sees a constant in the weight."""
    logp = torch.tensor([math.log(p)], dtype=torch.float64, requires_grad=True)
    near = {"rel": 1e-9, "abs": 1e-12}
    loss = objective.loss(logp)
    loss.sum().backward()
    assert loss.item() == pytest.approx(weight(p) * -math.log(p), **near)
    assert objective.weight(logp.detach()).item() == pytest.approx(weight(p), **near)
    assert logp.grad is not None
    assert -logp.grad.item() == pytest.approx(weight(p), **near)


# --- DFT --------------------------------------------------------------------------------------------------------------


@given(p=probabilities)
def test_dft_weighs_by_p(p: float) -> None:
    assert_weighs(build("dft"), p, lambda p: p)


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=20))
def test_dft_has_the_gradient_of_exponent_1(values: list[float]) -> None:
    logp = torch.tensor(values)
    assert torch.equal(build("dft").weight(logp), build("power", exponent=1).weight(logp))


# --- TALR -------------------------------------------------------------------------------------------------------------


@given(temperature=st.floats(0.05, 100), floor=st.floats(0, 1), p=probabilities)
def test_talr_weighs_by_a_root_of_p_above_a_floor(temperature: float, floor: float, p: float) -> None:
    objective = build("talr", temperature=temperature, floor=floor)
    assert_weighs(objective, p, lambda p: max(p ** (1 / temperature), floor))


@given(p=probabilities)
def test_talr_of_floor_1_is_minus_log_p(p: float) -> None:
    assert_weighs(build("talr", temperature=1, floor=1), p, lambda p: 1.0)


@given(p=probabilities)
def test_talr_of_temperature_1_without_a_floor_is_dft(p: float) -> None:
    assert_weighs(build("talr", temperature=1, floor=0), p, lambda p: p)


@pytest.mark.parametrize(
    ("sample_nll", "median"),
    [([2.0], 2.0), ([3.0, 0.5, 1.0], 1.0), ([4.0, 1.0, 3.0, 2.0], 2.0), ([0.0, 0.0], 1e-6)],
)
def test_talrs_temperature_is_the_median_of_the_samples_losses(sample_nll: list[float], median: float) -> None:
    objective = build("talr", floor=0.2, threshold=0.1)
    assert objective.needs_sample_nll
    step = objective.at(0.3, torch.tensor(sample_nll))
    assert step.temperature == pytest.approx(median)
    assert not step.needs_sample_nll
    assert step == build("talr", floor=0.2, threshold=0.1, temperature=step.temperature)
    assert objective.temperature is None  # each step has its own


def test_talr_with_a_temperature_asks_for_no_losses() -> None:
    objective = build("talr", temperature=2)
    assert not objective.needs_sample_nll
    assert objective.at(0.3) == objective
    assert objective.at(0.3, torch.tensor([7.0])) == objective


def test_talr_of_broken_samples_is_broken() -> None:
    """A NaN among the samples must not become a temperature that looks sound."""
    step = build("talr").at(0.0, torch.tensor([1.0, math.nan, 2.0]))
    assert step.loss(torch.tensor([-1.0])).isnan().all()


def test_talr_without_losses_of_samples_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="call `at` with the losses of the step's samples first"):
        build("talr").weight(torch.tensor([-1.0]))


# --- InfoSFT ----------------------------------------------------------------------------------------------------------


@given(ceiling=st.floats(0.51, 0.999), p=probabilities)
def test_infosft_weighs_by_p_and_what_is_not_known_yet(ceiling: float, p: float) -> None:
    def logit(p: float) -> float:
        return math.log(p) - math.log1p(-p)

    assert_weighs(build("infosft", ceiling=ceiling), p, lambda p: p * max(0.0, 1 - logit(p) / logit(ceiling)))


@given(ceiling=st.floats(0.51, 0.999), share=st.floats(1e-6, 1))
def test_infosft_is_0_above_its_ceiling(ceiling: float, share: float) -> None:
    p = ceiling + share * (1 - ceiling)
    logp = torch.tensor([math.log(p), -1e-30, 0.0], dtype=torch.float64)
    assert (build("infosft", ceiling=ceiling).weight(logp) == 0).all()
    assert (build("infosft", ceiling=ceiling).loss(logp) == 0).all()


@given(ceiling=st.floats(0.51, 0.999))
def test_infosft_at_one_half_is_p(ceiling: float) -> None:
    """logit(1/2) = 0: nothing is taken off, whatever the ceiling."""
    weight = build("infosft", ceiling=ceiling).weight(torch.tensor([math.log(0.5)], dtype=torch.float64))
    assert weight.item() == pytest.approx(0.5, rel=1e-12)
