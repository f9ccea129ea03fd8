"""The answer of a study, read back from a real MLflow: what is claimed, and what is not."""

from collections.abc import Callable
from typing import Any

import pytest

from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.results import Study, studies
from raysft.verdict import judge

Right = dict[float, float]  # exponent -> how often it is right
SEARCHED = 0.4


def anew(seeds: int, *exponents: float) -> list[TrialConfig]:
    """The trials that confirm these exponents and the baselines."""
    compared = [*PAPER_BASELINES, *(Power(exponent=a) for a in exponents)]
    return [
        TrialConfig(objective=objective, learning_rate=1e-3, seed=seed, role="confirm")
        for seed in range(1, seeds + 1)
        for objective in compared
    ]


@pytest.fixture
def study(made: Any) -> Callable[..., Study]:
    def make(found: Right, confirm: Right | None = None, seeds: int = 3, **changes: Any) -> Study:
        """Exponents, and how often each is right in the search (found) and when it is tried anew; others: never."""

        def accuracy(trial: TrialConfig) -> float:
            right = (confirm or {}) if trial.role == "confirm" else found
            return 0.0 if trial.objective.threshold else right.get(trial.objective.exponent, 0.0)  # type: ignore[attr-defined]

        config: SweepConfig = made.sweep(**changes)
        searched = [a for a in found if a not in (0, 1, 10)]
        trials = made.trials(*searched) + (anew(seeds, *searched) if confirm else [])
        made.track(config.for_backbone("tiny"), trials, accuracy)
        (read,) = studies([config.name], f"sqlite:///{made.output}/mlflow.db")
        return read

    return make


def test_a_winner_that_holds_up_is_confirmed(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.2, 1: 0.3, SEARCHED: 0.95}, {0: 0.1, 1: 0.2, SEARCHED: 0.95}))
    assert verdict.status == "confirmed"
    assert verdict.recommended is verdict.winner
    assert verdict.recommended is not None
    assert verdict.recommended.label == "exponent 0.4"
    assert len(verdict.recommended.trials) == 3
    assert list(verdict.gains) == ["nll", "-p"]
    assert all(gain.seeds == 3 and gain.problems == 40 and gain.low > 0.4 for gain in verdict.gains.values())
    assert "use exponent 0.4" in verdict.sentence
    assert "3 seeds and 40 problems that the search never saw" in verdict.sentence


def test_a_lucky_winner_is_overturned(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.2, 1: 0.8, SEARCHED: 0.95}, {0: 0.1, 1: 0.95, SEARCHED: 0.2}))
    assert verdict.status == "overturned"
    assert verdict.recommended is not None
    assert verdict.winner is not None
    assert (verdict.recommended.label, verdict.winner.label) == ("-p", "exponent 0.4")
    assert "did not hold up" in verdict.sentence


def test_two_that_are_alike_are_not_told_apart(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.2, 1: 0.8, SEARCHED: 0.85}, {0: 0.1, 1: 0.84, SEARCHED: 0.82}))
    assert verdict.status == "undecided"
    assert verdict.gains["nll"].significant
    assert not verdict.gains["-p"].significant
    assert "not significant" in verdict.sentence


def test_without_a_confirm_stage_nothing_is_confirmed(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.1, 1: 0.2, SEARCHED: 0.95}))
    assert verdict.status == "provisional"
    assert verdict.confirmed == []
    assert verdict.gains["nll"].level == pytest.approx(1 - 0.05 / 5), "it was picked from five"
    assert "confirm: {seeds: 3}" in verdict.sentence


def test_a_small_lead_in_the_search_is_none(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.5, 1: 0.5, SEARCHED: 0.53}))
    assert verdict.status == "undecided"


def test_a_baseline_that_wins_is_compared_with_the_other_one(study: Callable[..., Study]) -> None:
    verdict = judge(study({0: 0.1, 1: 0.9, SEARCHED: 0.5}))
    assert verdict.status == "provisional"
    assert verdict.recommended is not None
    assert verdict.recommended.label == "-p"
    assert list(verdict.gains) == ["nll"]


def test_a_metric_without_records_goes_by_its_seeds(study: Callable[..., Study]) -> None:
    """All made-up trials have an NLL of 1: nothing differs, and one seed gives no interval."""
    verdict = judge(study({0: 0.1, 1: 0.2}, search={"metric": "eval/nll"}))
    assert verdict.status == "undecided"
    assert "no interval" in verdict.sentence


def test_no_finished_trial_gives_no_answer(made: Any) -> None:
    config = made.sweep()
    failed = dict.fromkeys(range(4), ("FAILED", "the loss is nan"))
    made.track(config.for_backbone("tiny"), made.trials(), others=failed)
    (found,) = studies([config.name], f"sqlite:///{made.output}/mlflow.db")
    verdict = judge(found)
    assert (verdict.status, verdict.recommended) == ("none", None)
    assert "no trial has finished" in verdict.sentence


def test_without_the_two_baselines_nothing_is_claimed(made: Any) -> None:
    config = made.sweep()
    failed = dict.fromkeys(range(2), ("FAILED", "the loss is nan"))
    made.track(config.for_backbone("tiny"), made.trials(0.5), others=failed)
    (found,) = studies([config.name], f"sqlite:///{made.output}/mlflow.db")
    verdict = judge(found)
    assert verdict.status == "undecided"
    assert verdict.gains == {}
