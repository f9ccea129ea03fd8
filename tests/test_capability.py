"""Quantiles of a capability against numpy, and thresholds in quantiles as probabilities."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.capability import LEVELS, Capability, resolve_threshold
from raysft.config import TrialConfig
from raysft.objectives import Power

CAPABILITY = Capability(0.5, -1.0, 0.45, 1000, 10, [(i / 100) ** 2 for i in range(101)], [50] * 20)
PROBABILITIES = st.floats(0, 1)


def capability_of(probabilities: list[float]) -> Capability:
    return Capability(0, 0, 0, 1, 1, np.quantile(probabilities, LEVELS).tolist(), [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_numpys_between_percents(probabilities: list[float], q: float) -> None:
    found = capability_of(probabilities)
    percent = round(q, 2)
    assert found.quantile(percent) == pytest.approx(np.quantile(probabilities, percent), abs=1e-9)
    assert min(probabilities) <= found.quantile(q) <= max(probabilities)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50, unique=True), st.floats(0, 1))
def test_level_undoes_quantile(probabilities: list[float], q: float) -> None:
    found = capability_of(probabilities)
    assert found.quantile(found.level(found.quantile(q))) == pytest.approx(found.quantile(q), abs=1e-6)
    assert found.level(-0.1) == 0
    assert found.level(1.1) == 1


@pytest.mark.parametrize("q", [-0.01, 1.01, float("nan")])
def test_quantiles_outside_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match="quantile lies in"):
        capability_of([0.5]).quantile(q)


# --- thresholds -----------------------------------------------------------------------------------------------------


def trial_of(objective: Power) -> TrialConfig:
    return TrialConfig(objective=objective, learning_rate=3e-3, seed=0)


@given(PROBABILITIES, st.sampled_from(["above", "below"]))
def test_a_quantile_becomes_the_base_models_probability(quantile: float, keep: Any) -> None:
    asked = trial_of(Power(exponent=2, threshold=quantile, keep=keep, threshold_unit="quantile"))
    resolved = resolve_threshold(asked, CAPABILITY)
    expected = Power(exponent=2, threshold=CAPABILITY.quantile(quantile), keep=keep)
    assert resolved == asked.model_copy(update={"objective": expected, "quantile": quantile})
    assert resolve_threshold(resolved, CAPABILITY) == resolved


def test_quantiles_are_those_of_the_probe() -> None:
    for quantile, probability in ((0.0, 0.0), (0.5, 0.25), (0.9, 0.81), (1.0, 1.0)):
        asked = trial_of(Power(threshold=quantile, threshold_unit="quantile"))
        assert resolve_threshold(asked, CAPABILITY).objective.threshold == pytest.approx(probability)


@given(st.none() | PROBABILITIES)
def test_probabilities_and_no_threshold_stay_as_they_are(threshold: float | None) -> None:
    trial = trial_of(Power(threshold=threshold))
    assert resolve_threshold(trial, CAPABILITY) == trial
    unit = trial_of(Power(threshold_unit="quantile"))  # without a threshold the unit says nothing
    assert resolve_threshold(unit, CAPABILITY) == trial_of(Power())


@given(PROBABILITIES, PROBABILITIES)
def test_both_ends_of_an_interval_are_replaced(one: float, other: float) -> None:
    low, high = sorted((one, other))
    asked = trial_of(Power(exponent=2, threshold=low, upper=high, threshold_unit="quantile"))
    resolved = resolve_threshold(asked, CAPABILITY)
    ends = {"threshold": CAPABILITY.quantile(low), "upper": CAPABILITY.quantile(high)}
    assert resolved.objective == Power(exponent=2, **ends)
    assert (resolved.quantile, resolved.upper_quantile) == (low, high)
