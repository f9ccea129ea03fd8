"""The exponent that the probe picks: what is filled in, and how it follows the mean of p."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.errors import InputError
from raysft.objectives import Power, build
from raysft.objectives.auto import Auto, exponent_at

PATH = ((0.1, 0.0), (0.5, 0.5), (0.8, 1.0))
ADVICE: dict[str, Any] = {"capability": 0.3, "exponent": 0.25, "path": PATH}

paths = st.lists(
    st.tuples(st.integers(1, 999).map(lambda i: i / 1000), st.floats(0, 10)),
    min_size=1,
    max_size=6,
    unique_by=lambda w: w[0],
).map(lambda found: tuple(sorted(found)))


def test_what_is_open_is_filled_in() -> None:
    assert Auto().with_advice(**ADVICE) == Auto(exponent=0.25)
    assert Auto(follow=True).with_advice(**ADVICE) == Auto(follow=True, **ADVICE)


def test_what_is_given_stays() -> None:
    own = Auto(follow=True, exponent=2, capability=0.9, path=((0.5, 1.0),))
    assert own.with_advice(**ADVICE) == own
    once = Auto(follow=True).with_advice(**ADVICE)
    assert once.with_advice(capability=0.9, exponent=2.0, path=((0.5, 2.0),)) == once, "a trial is filled in once"


def test_without_its_exponent_it_has_no_loss() -> None:
    with pytest.raises(AssertionError, match="filled in"):
        Auto().loss(torch.zeros(1))


@given(st.floats(-2, 10), st.lists(st.floats(-50, 0), min_size=1, max_size=9))
def test_it_is_the_family(exponent: float, logps: list[float]) -> None:
    logp = torch.tensor(logps, dtype=torch.float64)
    for method in ("f", "s", "loss", "weight"):
        assert torch.equal(
            getattr(Auto(exponent=exponent), method)(logp), getattr(Power(exponent=exponent), method)(logp)
        )


@given(paths, st.floats(0, 1))
def test_the_exponent_lies_between_its_waypoints(path: Any, p: float) -> None:
    found = exponent_at(path, p)
    below = [exponent for level, exponent in path if level <= p]
    above = [exponent for level, exponent in path if level >= p]
    around = [below[-1] if below else path[0][1], above[0] if above else path[-1][1]]
    assert min(around) - 1e-9 <= found <= max(around) + 1e-9


@given(paths)
def test_at_a_waypoint_it_is_the_waypoints(path: Any) -> None:
    for level, exponent in path:
        assert exponent_at(path, level) == pytest.approx(exponent, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_a_rising_path_rises_everywhere(means: list[float]) -> None:
    exponents = [exponent_at(PATH, p) for p in sorted(means)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(exponents))


def test_half_way_is_half_way_in_logits() -> None:
    middle = 1 / (1 + math.sqrt(9))  # of the logits of .1 and .5
    assert exponent_at(PATH, middle) == pytest.approx(0.25)


def test_only_a_following_one_moves() -> None:
    fixed, following = Auto().with_advice(**ADVICE), Auto(follow=True, threshold=0.1).with_advice(**ADVICE)
    assert fixed.follows_from is None
    assert fixed.at(0.5) is fixed
    assert following.follows_from == 0.3
    step = following.at(0.5, None, 0.8)
    assert step == Auto(exponent=1.0, threshold=0.1)
    assert step.follows_from is None


def test_names_say_what_was_picked() -> None:
    assert [Auto().label(), Auto().slug()] == ["auto", "auto"]
    following = Auto(follow=True, threshold=0.2).with_advice(**ADVICE)
    assert following.label() == "auto, exponent 0.25, following, p >= 0.2"
    assert following.slug() == "auto-a0.25-follow-above0.2"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"path": [[0.5, 1], [0.2, 1]]}, "ascending"),
        ({"path": [[0.5, 1], [0.5, 2]]}, "ascending"),
        ({"path": [[0, 1]]}, "path"),
        ({"capability": 1.5}, "capability"),
        ({"exponent": "much"}, "exponent"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build("auto", **wrong)


def test_a_path_may_be_text_as_mlflow_keeps_it() -> None:
    assert build("auto", follow=True, path=str([list(point) for point in PATH])) == Auto(follow=True, path=PATH)
