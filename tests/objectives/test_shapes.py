"""log(1 - p), focal and Huber against their formulas, and what they are at the ends of their parameters."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.objectives import Objective, build
from raysft.objectives.shapes import FLOOR

probabilities = st.floats(1e-6, 1 - 1e-3)


def assert_is(objective: Objective, p: float, f: Callable[[float], float], df: Callable[[float], float]) -> None:
    """The objective at p against f and its derivative, both written in terms of p."""
    logp = torch.tensor([math.log(p)], dtype=torch.float64)
    assert objective.loss(logp).item() == pytest.approx(f(p), rel=1e-10, abs=1e-15)
    assert objective.weight(logp).item() == pytest.approx(-df(p) * p, rel=1e-10, abs=1e-15)


# --- log(1 - p) -------------------------------------------------------------------------------------------------------


@given(p=probabilities)
def test_log_one_minus_p(p: float) -> None:
    assert_is(build("log_one_minus_p"), p, lambda p: math.log1p(-p), lambda p: -1 / (1 - p))


@given(gap=st.floats(-30, -math.log(1.001 * FLOOR)))
def test_the_correct_logit_is_pulled_by_p_itself(gap: float) -> None:
    """W = s(p)(1 - p) = p above the floor of 1 - p; gap: log(p/(1 - p))."""
    gap = torch.tensor([gap], dtype=torch.float64)
    logp = torch.nn.functional.logsigmoid(gap)
    pull = build("log_one_minus_p").weight(logp) * torch.sigmoid(-gap)
    torch.testing.assert_close(pull, torch.sigmoid(gap), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rest", [0.0, 1e-30, 1e-12, 1e-7])
def test_near_certainty_the_loss_is_held_and_the_pull_goes_to_0(rest: float) -> None:
    """rest: 1 - p. The loss stays at log(1e-6) and s at p/1e-6, so that the pull is 1 - p over 1e-6."""
    objective, logp = build("log_one_minus_p"), torch.tensor([math.log1p(-rest)], dtype=torch.float64)
    assert objective.loss(logp).item() == pytest.approx(math.log(1e-6), rel=1e-12)
    assert objective.weight(logp).item() == pytest.approx((1 - rest) * 1e6, rel=1e-12)
    assert objective.weight(logp).item() * rest <= 0.1


# --- focal ------------------------------------------------------------------------------------------------------------


@given(gamma=st.floats(0, 10), p=probabilities)
def test_focal(gamma: float, p: float) -> None:
    assert_is(
        build("focal", gamma=gamma),
        p,
        lambda p: -((1 - p) ** gamma) * math.log(p),
        lambda p: gamma * (1 - p) ** (gamma - 1) * math.log(p) - (1 - p) ** gamma / p,
    )


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=20))
def test_focal_without_focus_is_exactly_minus_log_p(values: list[float]) -> None:
    logp = torch.tensor(values)
    assert torch.equal(build("focal", gamma=0).loss(logp), -logp)
    assert torch.equal(build("focal", gamma=0).weight(logp), torch.ones_like(logp))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rest", [1e-30, 1e-10])
def test_focal_near_certainty_is_a_power_of_what_is_missing(gamma: float, rest: float) -> None:
    """At p -> 1: f = (1 - p)^(1 + g) and s = (1 + g)(1 - p)^g, which a p rounded to 1 would lose."""
    objective, logp = build("focal", gamma=gamma), torch.tensor([-rest], dtype=torch.float64)
    assert objective.loss(logp).item() == pytest.approx(rest ** (1 + gamma), rel=1e-8)
    assert objective.weight(logp).item() == pytest.approx((1 + gamma) * rest**gamma, rel=1e-8)


# --- Huber ------------------------------------------------------------------------------------------------------------


@given(delta=st.floats(0.01, 1), p=probabilities)
def test_huber(delta: float, p: float) -> None:
    assert_is(
        build("huber", delta=delta),
        p,
        lambda p: (1 - p) ** 2 / 2 if 1 - p <= delta else delta * (1 - p) - delta**2 / 2,
        lambda p: -(1 - p) if 1 - p <= delta else -delta,
    )


@given(p=probabilities)
def test_huber_of_delta_1_is_half_the_square(p: float) -> None:
    assert_is(build("huber", delta=1), p, lambda p: (1 - p) ** 2 / 2, lambda p: p - 1)


@given(delta=st.floats(0.01, 1), p=probabilities)
def test_huber_is_torchs(delta: float, p: float) -> None:
    logp = torch.tensor([p], dtype=torch.float64).log()
    torchs = torch.nn.functional.huber_loss(logp.exp(), torch.ones_like(logp), delta=delta)
    torch.testing.assert_close(build("huber", delta=delta).loss(logp)[0], torchs, rtol=1e-10, atol=1e-15)
