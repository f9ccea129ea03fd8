"""Objectives by name: what is refused, and how it is worded; intervals of p; labels and names for folders."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.errors import InputError
from raysft.objectives import DistributionObjective, Objective, Power, build
from raysft.objectives.base import Rows


def test_builds_by_name() -> None:
    assert build("power") == Power(exponent=0.0, threshold=None, keep="above")
    assert build("power", exponent=-0.5, threshold=0.2, keep="below") == Power(
        exponent=-0.5, threshold=0.2, keep="below"
    )
    assert build("talr", threshold=0.1, upper=0.9).upper == 0.9


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("powr", {}, "objective 'powr': is unknown. Did you mean 'power'?"),
        ("", {}, "objective '': is unknown. Valid: asft, auto, deft, dft,"),
        ("power", {"exponet": 1}, "objective 'power' exponet: 'exponet' is not a key here. Did you mean 'exponent'?"),
        (
            "power",
            {"zzz": 1},
            "Valid: exponent, final_exponent, keep, schedule, threshold, threshold_unit, type, upper.",
        ),
        ("dft", {"exponent": 1}, "objective 'dft' exponent: 'exponent' is not a key here."),
        ("power", {"exponent": math.nan}, "objective 'power' exponent: must be a finite number, not nan."),
        ("power", {"exponent": math.inf}, "exponent: must be a finite number, not inf."),
        ("power", {"exponent": "two"}, "exponent: must be a number, not 'two'. The default is 0."),
        ("power", {"exponent": None}, "exponent: must be a number, not null."),
        ("power", {"threshold": -0.1}, "threshold: must be at least 0, not -0.1."),
        ("power", {"threshold": 1.0001}, "threshold: must be at most 1, not 1.0001."),
        ("power", {"threshold": math.nan}, "threshold: must be a finite number, not nan."),
        ("power", {"threshold": 0.2, "upper": 1.5}, "upper: must be at most 1, not 1.5."),
        ("power", {"threshold": 0.2, "keep": "abov"}, "keep: must be 'above' or 'below', not 'abov'. Did you mean"),
        ("power", {"threshold": 0.2, "threshold_unit": "rank"}, "threshold_unit: must be 'probability' or 'quantile'"),
        ("power", {"upper": 0.2}, "objective 'power' upper: upper bounds what a threshold keeps above itself"),
        ("power", {"threshold": 0.1, "upper": 0.2, "keep": "below"}, "set threshold, and keep to above."),
        ("power", {"threshold": 0.5, "upper": 0.2}, "upper (0.2) must not be below threshold (0.5)."),
        ("power", {"type": "focal"}, "objective 'power' type: must be 'power', not 'focal'."),
        ("focal", {"gamma": -1}, "objective 'focal' gamma: must be at least 0, not -1. The default is 2."),
        ("focal", {"gamma": 10.5}, "gamma: must be at most 10, not 10.5."),
        ("huber", {"delta": 0}, "delta: must be above 0, not 0."),
        ("huber", {"delta": 1.5}, "delta: must be at most 1, not 1.5."),
        ("talr", {"temperature": 0}, "temperature: must be above 0, not 0. The default is null."),
        ("talr", {"floor": 2}, "floor: must be at most 1, not 2."),
        ("infosft", {"ceiling": 0.5}, "ceiling: must be above 0.5, not 0.5."),
        ("infosft", {"ceiling": 1}, "ceiling: must be below 1, not 1."),
        ("eaft", {"top_k": 1}, "top_k: must be at least 2, not 1."),
        ("eaft", {"top_k": 2.5}, "top_k: must be a whole number, not 2.5."),
        ("gem", {"beta": 0}, "beta: must be above 0, not 0."),
        ("gem", {"link": "cubic"}, "link: must be 'linear' or 'logsigmoid', not 'cubic'."),
        ("label_smoothing", {"epsilon": 1}, "epsilon: must be below 1, not 1."),
        ("asft", {"kl_weight": -1}, "kl_weight: must be at least 0, not -1."),
    ],
)
def test_refuses_with_the_nearest_valid_name(name: str, params: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        build(name, **params)
    assert told in str(refused.value)


# --- intervals --------------------------------------------------------------------------------------------------------


@given(
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    keep=st.sampled_from(["above", "below", "between"]),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_an_interval_keeps_what_lies_in_it(
    ends: tuple[float, float], keep: Literal["above", "below", "between"], values: list[float]
) -> None:
    low, high = sorted(ends)
    upper = high if keep == "between" else None
    objective = Power(exponent=0.5, threshold=low, upper=upper, keep="below" if keep == "below" else "above")
    p = torch.tensor(values, dtype=torch.float64)
    logp = p.log()
    wanted = {"above": p >= low, "below": p <= low, "between": (p >= low) & (p <= high)}[keep]
    clear = ((p - low).abs() > 1e-12) & ((p - high).abs() > 1e-12)  # elsewhere the logarithm's last digit decides
    kept = objective.keeps(logp)
    assert torch.equal(kept[clear], wanted[clear])
    for method in ("loss", "weight"):
        whole, part = getattr(Power(exponent=0.5), method)(logp), getattr(objective, method)(logp)
        assert torch.equal(part[kept], whole[kept])
        assert (part[~kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0.05, 0.1, 0.2, 0.55, 0.9, 1.0])
def test_a_token_at_an_end_is_kept_in_every_precision(end: float, dtype: torch.dtype) -> None:
    logp = torch.tensor([math.log(end)], dtype=dtype)
    for interval in (
        {"threshold": end},
        {"threshold": end, "keep": "below"},
        {"threshold": end, "upper": end},
        {"threshold": 0.01, "upper": end},
    ):
        assert build("power", **interval).keeps(logp).all()


def test_no_threshold_keeps_every_token() -> None:
    assert Power(exponent=2).keeps(torch.tensor([-1e4, -1.0, 0.0])).all()


def test_threshold_0_keeps_everything_above_and_hopeless_tokens_below() -> None:
    logp = torch.tensor([-math.inf, -1e4, 0.0])
    assert Power(threshold=0).keeps(logp).tolist() == [True, True, True]
    assert Power(threshold=0, keep="below").keeps(logp).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "interval", [{}, {"threshold": 0.2}, {"threshold": 0.2, "keep": "below"}, {"threshold": 0.2, "upper": 0.5}]
)
def test_a_nan_is_kept_so_that_it_shows(interval: dict[str, Any]) -> None:
    objective = build("power", **interval)
    logp = torch.tensor([math.nan, math.log(0.3)])
    assert objective.keeps(logp)[0]
    assert objective.loss(logp)[0].isnan()
    assert objective.weight(logp)[0].isnan()


def test_a_quantile_is_no_probability() -> None:
    with pytest.raises(AssertionError, match="turned into a probability"):
        Power(threshold=0.2, threshold_unit="quantile").keeps(torch.tensor([-1.0]))


# --- labels and names for folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "label", "slug"),
    [
        ("power", {}, "nll", "power-a0"),
        ("power", {"exponent": 1}, "-p", "power-a1"),
        ("power", {"exponent": 10}, "-p^10", "power-a10"),
        ("power", {"exponent": 0.5}, "exponent 0.5", "power-a0.5"),
        ("power", {"exponent": -0.5}, "exponent -0.5", "power-a-0.5"),
        ("power", {"exponent": 1, "threshold": 0.2}, "-p, p >= 0.2", "power-a1-above0.2"),
        ("power", {"threshold": 0.2, "keep": "below"}, "nll, p <= 0.2", "power-a0-below0.2"),
        ("power", {"threshold": 0.2, "upper": 0.7}, "nll, 0.2 <= p <= 0.7", "power-a0-above0.2-to0.7"),
        ("power", {"exponent": 2, "final_exponent": 0}, "exponent 2 to 0", "power-a2-to0-linear"),
        (
            "power",
            {"exponent": 0, "final_exponent": 1, "schedule": "cosine"},
            "exponent 0 to 1, cosine",
            "power-a0-to1-cosine",
        ),
        ("dft", {}, "dft", "dft"),
        ("focal", {}, "focal", "focal"),
        ("focal", {"gamma": 0.5}, "focal gamma 0.5", "focal-gamma0.5"),
        ("gem", {"beta": 0.3, "link": "logsigmoid"}, "gem beta 0.3, link logsigmoid", "gem-beta0.3-linklogsigmoid"),
        ("asft", {"threshold": 0.1}, "asft, p >= 0.1", "asft-above0.1"),
    ],
)
def test_label_and_slug(name: str, params: dict[str, Any], label: str, slug: str) -> None:
    objective = build(name, **params)
    assert (objective.label(), objective.slug()) == (label, slug)


def test_a_quantile_is_labelled_as_one() -> None:
    low = Power(threshold=0.2, threshold_unit="quantile")
    assert low.label() == "nll, p >= quantile 0.2"
    both = Power(threshold=0.2, upper=0.7, threshold_unit="quantile")
    assert both.label() == "nll, quantile 0.2 <= p <= quantile 0.7"


def test_a_quantile_and_a_probability_have_folders_of_their_own() -> None:
    assert Power(threshold=0.2, threshold_unit="quantile").slug() != Power(threshold=0.2).slug()


def test_parameters_are_the_objectives_own() -> None:
    assert build("focal", gamma=3, threshold=0.2).parameters() == {"gamma": 3.0}
    assert build("dft").parameters() == {}


# --- what a subclass need not write -----------------------------------------------------------------------------------


class Squared(Objective):
    """(log p)^2 of f alone: s comes from autograd."""

    type: Literal["squared"] = "squared"
    power: float

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return logp**self.power


class SquaredRows(DistributionObjective):
    """The same of token_loss alone."""

    type: Literal["squared_rows"] = "squared_rows"

    def token_loss(self, rows: Rows) -> torch.Tensor:
        return rows.logp**2


def test_slope_by_autograd_even_where_gradients_are_off() -> None:
    logp = torch.tensor([-3.0, -0.5, 0.0])
    with torch.no_grad():
        slope = Squared(power=2).s(logp)
    torch.testing.assert_close(slope, -2 * logp)
    assert not slope.requires_grad


def test_token_gradient_by_autograd_even_where_gradients_are_off() -> None:
    rows = Rows(torch.tensor([[1.0, 0.0, -1.0]]).double(), torch.tensor([1]))
    with torch.no_grad():
        gradient = SquaredRows().token_gradient(rows)
    softmax = rows.logits.softmax(1)
    expected = -2 * softmax[:, 1].log() * (softmax - torch.tensor([[0.0, 1.0, 0.0]]).double())
    torch.testing.assert_close(gradient, expected)
    assert not gradient.requires_grad


def test_a_required_parameter_is_always_part_of_the_name() -> None:
    assert Squared(power=2).label() == "squared power 2"
    assert Squared(power=2).slug() == "squared-power2"


# --- rows -------------------------------------------------------------------------------------------------------------


def test_log_p_of_rows_keeps_its_digits_at_both_ends() -> None:
    """Where log_softmax has lost them: at p = 1 - e^-40, all of them."""
    gaps = [40.0, 17.0, 0.0, -100.0, -1e4]
    rows = Rows(torch.tensor([[gap, 0.0] for gap in gaps]), torch.zeros(5, dtype=torch.long))
    expected = torch.tensor([-math.log1p(math.exp(-g)) if g > -50 else g for g in gaps])
    torch.testing.assert_close(rows.logp, expected, rtol=1e-6, atol=0)
    pulls = torch.tensor([-1 / (1 + math.exp(g)) if g < 50 else -math.exp(-g) for g in gaps[:3]])
    torch.testing.assert_close(rows.softmax_minus_onehot()[:3, 0], pulls, rtol=1e-6, atol=0)
