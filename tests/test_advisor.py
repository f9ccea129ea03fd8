"""The advice before any trial: by the paper, by earlier studies, and how sure it is."""

import math
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raysft import paper
from raysft.advisor import CANDIDATES, EXPONENTS, Advice, Evidence, advise, asks_advice, relative, resolve
from raysft.capability import Capability
from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.objectives.auto import Auto


def probed(p: float, share: float | None = None) -> Capability:
    return Capability(p, math.log(p), p if share is None else share, 1000, 10, [i / 100 for i in range(101)], [50] * 20)


capabilities = st.floats(0.001, 0.999)
curves = st.dictionaries(st.sampled_from(EXPONENTS), st.floats(0, 1), min_size=2)
studies = st.builds(Evidence, st.just("a/b"), capabilities, curves, st.none() | st.floats(0, 1))


def of(p: float, best: float, name: str = "sweep/backbone") -> Evidence:
    """A study in which one exponent is far better than all others."""
    return Evidence(name, p, {a: 0.8 if a == best else 0.1 for a in EXPONENTS}, 0.1)


# --- without studies of one's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", paper.MEASURED, ids=lambda m: f"{m.domain}, {m.backbone}")
def test_the_papers_own_backbones_get_the_papers_answer(measured: paper.Measured) -> None:
    """What it advises loses little against the best that the paper has, where the paper has it."""
    advice = advise(probed(measured.capability))
    scores = [score for a, score in measured.scores.items() if a == advice.exponent]
    assert all(score >= 0.9 * max(measured.scores.values()) for score in scores)
    assert advice.own == 0
    assert advice.studies == []
    assert advice.confidence == "low"


def test_the_ends_are_told_apart() -> None:
    weak, strong = advise(probed(0.02)), advise(probed(0.8))
    assert weak.exponent <= paper.WEAK_BEST
    assert strong.exponent == 1
    labels = [choice.objective.label() for choice in weak.choices]
    assert set(labels[-4:]) == {"-p", "-p^2", "-p^10", "nll, p >= 0.2"}
    assert strong.choices[-1].objective.label() == "nll"


@pytest.mark.parametrize(
    ("p", "share", "expected"),
    [
        (0.6, 0.7, "strong"),  # Assumption 6.1
        (0.8, 0.5, "strong"),
        (0.5, 0.4, "intermediate"),
        (0.11, 0.1, "intermediate"),
        (0.1, 0.1, "weak"),
    ],
)
def test_where_on_the_continuum(p: float, share: float, expected: str) -> None:
    assert advise(probed(p, share)).regime == expected


# --- with them --------------------------------------------------------------------------------------------------------


def test_a_study_at_the_same_capability_outweighs_the_paper() -> None:
    advice = advise(probed(0.8), [of(0.8, best=0.25, name=f"sweep/{i}") for i in range(4)])
    assert advice.exponent == 0.25
    assert advice.confidence == "high"
    assert advice.studies == ["sweep/0", "sweep/1", "sweep/2"]


def test_a_study_far_away_changes_nothing() -> None:
    far = [of(0.002, best=10.0)] * 3
    assert advise(probed(0.9), far).exponent == advise(probed(0.9)).exponent
    assert advise(probed(0.9), far).confidence == "low"


def test_between_two_ends_the_advice_loses_little_at_either() -> None:
    """Neither study has it as its best: it is what the mean over both shows."""
    weak = Evidence("a", 0.4, {0: 1.0, 0.5: 0.8, 1: 0.0})
    strong = Evidence("b", 0.6, {0: 0.2, 0.5: 0.8, 1: 1.0})
    first = advise(probed(0.5), [weak, strong] * 5).choices[0]
    assert first.exponent in (0.25, 0.5)
    assert first.expected > 0.75


def test_studies_that_disagree_lower_the_confidence() -> None:
    agreeing, mixed = [of(0.5, 0.5)] * 4, [of(0.5, 0.5), of(0.5, 0.0)] * 2
    assert advise(probed(0.5), agreeing).confidence == "high"
    assert advise(probed(0.5), mixed).confidence == "low"


@given(capabilities, st.lists(studies, max_size=5))
def test_every_candidate_is_ranked_once(p: float, known: list[Evidence]) -> None:
    advice = advise(probed(p), known)
    assert sorted(c.objective.slug() for c in advice.choices) == sorted(o.slug() for o in CANDIDATES)
    expected = [choice.expected for choice in advice.choices]
    assert expected == sorted(expected, reverse=True)
    assert all(0 <= choice.expected <= 1 + 1e-9 and choice.spread >= 0 for choice in advice.choices)
    assert advice.promising()[0] == advice.choices[0].objective
    assert Advice.from_json(advice.to_json()) == advice


@given(capabilities, st.lists(studies, max_size=5), st.randoms())
def test_the_order_of_the_evidence_does_not_matter(p: float, known: list[Evidence], random: object) -> None:
    mixed = list(known)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    first, second = advise(probed(p), known), advise(probed(p), mixed)
    for choice in first.choices:
        same = next(c for c in second.choices if c.objective == choice.objective)
        assert same.expected == pytest.approx(choice.expected)


@given(studies, st.floats(0.1, 50))
def test_the_scale_of_a_metric_does_not_matter(study: Evidence, factor: float) -> None:
    assume(max(study.scores.values()) > 0.01)
    thresholded = None if study.thresholded is None else factor * study.thresholded
    scaled = Evidence("a/b", study.capability, {a: factor * s for a, s in study.scores.items()}, thresholded)
    for objective in CANDIDATES:
        before = relative(study, objective.exponent, objective.threshold)
        assert relative(scaled, objective.exponent, objective.threshold) == pytest.approx(before)


@given(studies)
def test_a_curve_goes_through_its_points_and_not_beyond_them(study: Evidence) -> None:
    best = max([*study.scores.values(), study.thresholded or 0])
    assume(best > 0)
    for exponent, score in study.scores.items():
        assert relative(study, exponent, None) == pytest.approx(score / best)
    for exponent in (0.05, 0.3, 0.7, 1.5, 5.0, 100.0):
        assert min(study.scores.values()) / best - 1e-9 <= relative(study, exponent, None) <= 1 + 1e-9


def test_next_to_a_good_objective_little_is_lost() -> None:
    falling = Evidence("a", 0.05, {0: 1.0, 1: 0.0})
    lost = [1 - relative(falling, a, None) for a in (0.1, 0.25, 0.5)]
    assert lost == pytest.approx([(2 * a / (1 + a)) ** 2 for a in (0.1, 0.25, 0.5)])


def test_a_study_in_which_nothing_was_learned_says_nothing() -> None:
    nothing = Evidence("a", 0.5, dict.fromkeys(EXPONENTS, 0.0), 0.0)
    assert advise(probed(0.5), [nothing]) == advise(probed(0.5))


# --- what goes by it --------------------------------------------------------------------------------------------------


def trial(objective: Power | Auto) -> TrialConfig:
    return TrialConfig(objective=objective, learning_rate=1e-3, seed=0)


def test_auto_is_filled_in_from_the_advice() -> None:
    capability = probed(0.03)
    advice = advise(capability)
    assert resolve(trial(Auto()), capability, advice).objective == Auto(exponent=advice.exponent)
    following = resolve(trial(Auto(follow=True)), capability, advice).objective
    assert following.follows_from == capability.mean_probability
    assert following.path == tuple(advice.path)
    assert resolve(trial(following), capability, advise(probed(0.9))).objective == following


def test_quantiles_are_resolved_as_well() -> None:
    asked = Auto(threshold=0.3, threshold_unit="quantile")
    found = resolve(trial(asked), probed(0.5), advise(probed(0.5)))
    assert (found.objective.threshold, found.objective.threshold_unit, found.quantile) == (0.3, "probability", 0.3)


def test_who_asks_for_advice(make_config: "type[SweepConfig]") -> None:
    accuracy = make_config(search={"metric": "eval/accuracy"})
    assert asks_advice(accuracy, [])
    assert not asks_advice(make_config(search={"metric": "eval/nll"}), [trial(Power())])
    silent = make_config(search={"advice": False})
    assert not asks_advice(silent, [trial(Power())])
    assert asks_advice(silent, [trial(Auto())])
    grid = make_config(space={"exponent": [0.5, 2]}, search={"sampler": "grid", "trials": None})
    assert not asks_advice(grid, [trial(Power())]), "it goes by its own order"
    assert asks_advice(make_config(search={"metric": "eval/nll"}, space={"objectives": [{"type": "auto"}]}), [])


def test_it_needs_neither_torch_nor_ray_nor_mlflow() -> None:
    heavy = "import sys, raysft.advisor; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
