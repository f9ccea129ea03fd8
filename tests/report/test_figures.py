"""What the figures rest on: scales, marks, weights, intervals and costs, each against its definition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import PAPER_BASELINES, SweepConfig
from raysft.objectives import Power, build
from raysft.paper import MEASURED
from raysft.report.across import continuum
from raysft.report.chart import Drawing, Missing, mark, spread, unspread
from raysft.report.cost import costs
from raysft.report.curves import _averaged
from raysft.report.intervals import of_candidate, of_trial
from raysft.report.listens import listens, share_below, weight
from raysft.report.tried import over_exponent
from raysft.results import Study, studies
from raysft.tracking import Tracking
from raysft.verdict import judge

Made = Any  # the fixture of conftest.py


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_the_scale_of_exponents_keeps_their_order_and_can_be_undone(exponents: list[float]) -> None:
    ordered = np.sort(np.array(exponents))
    places = spread(ordered)
    assert (np.diff(places) >= 0).all()
    assert np.allclose(unspread(places), ordered, rtol=1e-9, atol=1e-12)


def test_baselines_differ_in_more_than_colour() -> None:
    marks = [mark(baseline) for baseline in (*PAPER_BASELINES, Power(exponent=0.3))]
    for part in ("color", "marker"):
        assert len({getattr(m, part) for m in marks}) == 5
    assert len({m.dash for m in marks[:4]}) == 4


def test_the_weight_is_that_of_the_definition() -> None:
    p = np.linspace(0.01, 0.99, 99)
    for a in (0.0, 0.5, 1.0, 10.0):
        assert np.allclose(weight(Power(exponent=a), p), p**a * (1 - p))
    thresholded = weight(Power(threshold=0.2), p)
    assert (thresholded[p < 0.195] == 0).all()
    assert np.allclose(thresholded[p > 0.205], 1 - p[p > 0.205])


def test_the_share_of_the_weight_is_that_of_the_tokens(made: Made) -> None:
    """Against the same sum by hand, over the middles of the bins."""
    capability = made.capable(0.5)
    middles, counts = np.arange(20) / 20 + 0.025, np.array(capability.histogram)
    for a in (0.0, 1.0, 10.0):
        held = counts * middles**a * (1 - middles)
        assert share_below(Power(exponent=a), capability) == pytest.approx(held[:10].sum() / held.sum())
    assert share_below(Power(threshold=0.6), capability) == 0.0
    only_below = Power(threshold=0.3, keep="below")
    assert share_below(only_below, capability) == 1.0
    assert np.isnan(share_below(only_below, replace(capability, histogram=[0] * 19 + [10])))


def test_an_objective_that_is_no_function_of_p_is_named(found: dict[str, Study]) -> None:
    study = found["mid"]
    candidate = judge(study).recommended
    assert candidate is not None
    for name in ("gem", "talr"):
        chosen = replace(judge(study), recommended=replace(candidate, objective=build(name)))
        drawing = listens(study, chosen, "x")
        assert isinstance(drawing, Drawing)
        assert f"{name} is no function of p alone" in drawing.text
    moving = Power(exponent=0.0, final_exponent=2.0)
    drawing = listens(study, replace(judge(study), recommended=replace(candidate, objective=moving)), "x")
    assert isinstance(drawing, Drawing)
    without = listens(replace(study, capability=None), judge(study), "x")
    assert isinstance(without, Missing)


def test_seeds_widen_an_interval(found: dict[str, Study]) -> None:
    study = found["strong"]
    verdict = judge(study)
    assert len(verdict.confirmed) == 4
    for candidate in verdict.confirmed:
        whole, alone = of_candidate(study, candidate), of_trial(study, candidate.trials[0])
        assert whole.low < whole.value < whole.high
        assert whole.value == pytest.approx(np.mean([study.value(t) for t in candidate.trials]))
        single = of_candidate(study, replace(candidate, trials=candidate.trials[:1]))
        assert (single.low, single.high) == (alone.low, alone.high)


def test_confirmed_objectives_are_the_headline(found: dict[str, Study]) -> None:
    drawing = over_exponent(found["strong"], judge(found["strong"]), "x")
    assert isinstance(drawing, Drawing)
    assert drawing.svg.count(", 3 seeds") == 3, "nll, -p and -p^10; the one with a threshold has no place here"
    assert "that the search never saw" in drawing.text
    plain = over_exponent(found["weak"], judge(found["weak"]), "x")
    assert isinstance(plain, Drawing)
    assert "seeds<" not in plain.svg


def test_the_paper_stands_beside_the_users_backbones(found: dict[str, Study]) -> None:
    drawing = continuum([(study, judge(study)) for study in found.values()])
    assert isinstance(drawing, Drawing)
    for name in found:
        assert drawing.svg.count(f">{name}</text>") == 2
    paper = drawing.svg.count("stroke: #666666")
    assert paper >= 2 * len(MEASURED)
    assert "the paper's, medical" in drawing.svg
    assert "this report's" in drawing.svg
    assert "arXiv 2510.00526" in drawing.text


def test_curves_are_means_of_equal_parts() -> None:
    assert _averaged(np.arange(400.0)).tolist() == [4.5 + 10 * i for i in range(40)]
    assert _averaged(np.arange(3.0)).tolist() == [0, 1, 2]


# --- costs ------------------------------------------------------------------------------------------------------------


def test_costs_are_time_by_processors_and_steps_by_tokens(found: dict[str, Study]) -> None:
    """30 s and 20 steps of 8 samples with 12 tokens each, on one CPU."""
    baselines, searched, whole = costs(found["weak"])
    assert (baselines.what, baselines.trials, baselines.finished, baselines.stopped) == ("baselines", 4, 3, 1)
    assert (searched.what, searched.trials, searched.finished, searched.failed) == ("searched", 2, 1, 1)
    assert whole.trials == 6
    assert whole.tokens == 6 * 20 * 8 * 12
    assert whole.hours == pytest.approx(4 * 30 / 3600, abs=0.002), "and what the two others took to be written"
    assert whole.unit == "CPU"
    assert [cost.what for cost in costs(found["strong"])] == ["baselines", "searched", "confirming", "all"]


@pytest.mark.parametrize(
    ("workers", "hours", "unit"),
    [
        ({"count": 4, "resources": {"CPU": 8, "GPU": 2}}, 8 * 2 / 60, "GPU"),
        ({"count": 2, "resources": {"CPU": 3}}, 6 * 2 / 60, "CPU"),
        ({"count": 1, "resources": {"CPU": 1, "GPU": 0.5}, "lanes": 2}, 0.25 * 2 / 60, "GPU"),
    ],
)
def test_processors_that_a_trial_holds(
    swept: SweepConfig, found: dict[str, Study], workers: Any, hours: float, unit: str
) -> None:
    study = found["strong"]
    values = swept.for_backbone("strong").model_dump() | {"workers": workers}
    values["training"]["lora"] = {} if "lanes" in workers else None
    whole = costs(replace(study, config=SweepConfig.model_validate(values), trials=study.trials[:4]))[-1]
    assert (whole.hours, whole.unit) == (pytest.approx(hours), unit)


def test_a_paused_trials_stretches_are_added_up(made: Made) -> None:
    """Its clock began anew twice: at 10, 7 and 12 seconds it stopped."""
    config = made.sweep(
        evaluation={"every": 2}, search={"metric": "eval/nll", "asha": {"grace_period": 2}}
    ).for_backbone("tiny")
    study = Tracking(config).start_study(config)
    study.start_trial("0", made.trials()[0])
    clock = {2: 5.0, 4: 10.0, 6: 7.0, 8: 2.0, 10: 12.0}
    study.log_points("0", [{"step": s, "time": 1.0, "time/seconds": t, "eval/nll": 1.0} for s, t in clock.items()])
    study.end_trial("0", "FINISHED")
    study.end("FINISHED")
    (found,) = studies([config.folder])
    assert costs(found)[-1].hours == pytest.approx(29 / 3600)
