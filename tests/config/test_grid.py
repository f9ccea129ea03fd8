"""A grid over a space: every combination once, in an order that the file alone decides, and only where it ends."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from raysft.config import PAPER_BASELINES, SearchConfig, SpaceConfig, SweepConfig
from raysft.config.grid import points, size, unlisted
from raysft.objectives import Power


def sweep(**changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "name": "s",
        "backbones": [{"name": "one", "path": "a/b"}],
        "data": {"train": {"kind": "file", "path": "train.jsonl"}},
        "evaluation": {"generation": {}},
        "search": {"sampler": "grid"},
    }
    return SweepConfig.model_validate(values | changes)


def labels(config: SweepConfig) -> list[str]:
    grid = config.grid()
    assert grid is not None
    return [trial.objective.label() for trial in grid]


def test_the_papers_exponents_are_decimal_numbers_and_1_is_a_baseline() -> None:
    config = sweep(space={"exponent": {"low": 0.1, "high": 1, "step": 0.1}})
    assert [objective.exponent for objective, _ in points(config.space)] == [
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1,
    ]
    assert labels(config) == [f"exponent {tenths / 10:g}" for tenths in range(1, 10)]
    assert config.searched == 9


@pytest.mark.parametrize(
    ("low", "high", "step", "values"),
    [(0, 1, 0.5, [0, 0.5, 1]), (0, 1, 0.4, [0, 0.4, 0.8]), (-1, 1, 2, [-1, 1]), (0.05, 0.1, 0.1, [0.05])],
)
def test_a_stepped_range_ends_at_or_below_its_high(low: float, high: float, step: float, values: list[float]) -> None:
    space = SpaceConfig(exponent={"low": low, "high": high, "step": step})
    assert [objective.exponent for objective, _ in points(space)] == values
    assert size(space) == len(values)


def test_the_order_is_that_of_the_lists_and_the_rate_changes_fastest() -> None:
    space = {
        "objectives": [{"type": "focal", "gamma": [3, 1]}, {"type": "power"}],
        "exponent": [2, 0.5],
        "threshold": [0.4, 0.1],
        "keep": ["below", "above"],
        "threshold_optional": False,
        "learning_rate": [2e-5, 1e-5],
    }
    grid = sweep(space=space).grid()
    assert grid is not None
    assert [trial.learning_rate for trial in grid] == [2e-5, 1e-5] * 16
    assert [trial.objective.label() for trial in grid[:16:2]] == [
        "focal gamma 3, p <= 0.4",
        "focal gamma 1, p <= 0.4",
        "focal gamma 3, p >= 0.4",
        "focal gamma 1, p >= 0.4",
        "focal gamma 3, p <= 0.1",
        "focal gamma 1, p <= 0.1",
        "focal gamma 3, p >= 0.1",
        "focal gamma 1, p >= 0.1",
    ]
    assert [trial.objective.type for trial in grid[16:]] == ["power"] * 16


def test_one_without_a_threshold_is_there_once_whatever_the_thresholds_are() -> None:
    config = sweep(space={"exponent": [0.5, 2], "threshold": [0.1, 0.3], "keep": ["above", "below"]})
    assert labels(config)[:2] == ["exponent 0.5", "-p^2"]
    assert len(set(labels(config))) == len(labels(config)) == 2 * (1 + 2 * 2)


def test_baselines_are_left_out_at_their_own_rate_only() -> None:
    """The paper's four and the file's; a quantile is no probability, even where both are 0.2."""
    exponents = {"exponent": [0, 0.5, 1, 10], "threshold": [0.2, 0.3]}
    config = sweep(space=exponents, baselines=[{"exponent": 0.5}])
    left = config.grid()
    assert left is not None
    assert len(left) == 12 - 5
    assert not {trial.objective for trial in left} & {*PAPER_BASELINES, Power(exponent=0.5)}
    assert len(sweep(space=exponents | {"threshold_unit": "quantile"}).grid() or []) == 12 - 3
    rates = sweep(space={"exponent": [0.5, 1], "learning_rate": [5e-5, 1e-5]}).grid()
    assert rates is not None
    assert [(t.objective.exponent, t.learning_rate) for t in rates] == [(0.5, 5e-5), (0.5, 1e-5), (1, 1e-5)]


def test_a_backbone_of_another_rate_has_that_rates_grid() -> None:
    slow = {"name": "slow", "path": "a/b", "overrides": {"training": {"learning_rate": 1e-5}, "space": {"exponent": 3}}}
    config = sweep(backbones=[{"name": "one", "path": "a/b"}, slow], space={"exponent": [0.5, 1, 3]}, seed=4)
    assert config.for_backbone("one").searched == 2
    (trial,) = config.for_backbone("slow").grid() or []
    assert (trial.objective.exponent, trial.learning_rate, trial.seed, trial.role) == (3, 1e-5, 4, "search")


def test_how_many_of_a_grid_are_searched() -> None:
    space = {"exponent": [0.5, 1, 2, 3]}
    assert SearchConfig(sampler="grid").trials is None
    assert SearchConfig().trials == 16
    wanted = {None: 3, 0: 0, 2: 2, 3: 3, 16: 3}
    for trials, found in wanted.items():
        config = sweep(space=space, search={"sampler": "grid", "trials": trials})
        assert config.searched == found
        assert config.for_backbone("one").search == config.search
    assert sweep(space=space, search={}).grid() is None
    assert sweep(space=space, search={}).searched == 16


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "search.sampler grid needs values, but space.exponent is a range: list them, or give a step"),
        ({"space": {"exponent": [1], "learning_rate": {"low": 1e-5, "high": 1e-4}}}, "space.learning_rate is a range"),
        ({"space": {"exponent": 1, "threshold": {"low": 0, "high": 0.5}}}, "space.threshold is a range"),
        (
            {"space": {"objectives": [{"type": "focal", "gamma": {"low": 0, "high": 5}}]}},
            "space.objectives: focal.gamma is a range",
        ),
        (
            {"space": {"exponent": {"low": 0, "high": 1, "step": 1e-12}}},
            "the space has 1,000,000,000,001 points, more than 10,000: list fewer",
        ),
        ({"search": {"trials": None}}, "trials null means a whole grid: give the sampler tpe a number of trials"),
    ],
)
def test_what_no_grid_goes_through_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        sweep(**changes)


def test_a_range_that_nothing_uses_is_no_hindrance() -> None:
    config = sweep(space={"objectives": [{"type": "focal", "gamma": [1, 3]}]})
    assert unlisted(config.space) is None
    assert config.searched == 2
