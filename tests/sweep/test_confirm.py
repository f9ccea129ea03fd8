"""What confirms a search: which trials, with which seeds."""

from collections.abc import Callable

import pytest

from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.sweep.confirm import best_of, confirm_trials, most_confirm_trials
from raysft.sweep.ledger import Status, TrialRow

Make = Callable[..., SweepConfig]


def row(number: int, objective: Power, accuracy: float, role: str = "search", status: Status = "FINISHED") -> TrialRow:
    trial = TrialConfig.model_validate({"objective": objective, "learning_rate": 3e-3, "seed": 0, "role": role})
    return TrialRow(f"{number:04d}", trial, status, {"eval/accuracy": accuracy})


def baseline_rows(accuracy: float) -> list[TrialRow]:
    return [row(i, objective, accuracy, "baseline") for i, objective in enumerate(PAPER_BASELINES)]


def test_winner_and_baselines_with_seeds_of_their_own(make_config: Make) -> None:
    config = make_config(confirm={"seeds": 2}, seed=5).for_backbone("tiny")
    rows = [*baseline_rows(0.5), row(4, Power(exponent=0.3), 0.6), row(5, Power(exponent=0.4), 0.55)]
    trials = confirm_trials(config, rows)
    assert [t.seed for t in trials] == [6] * 5 + [7] * 5, "a whole seed before the next"
    assert {t.role for t in trials} == {"confirm"}
    assert [t.objective for t in trials[:5]] == [*PAPER_BASELINES, Power(exponent=0.3)]
    assert len(trials) == most_confirm_trials(config)


def test_a_baseline_that_wins_is_not_run_twice(make_config: Make) -> None:
    config = make_config(confirm={"seeds": 3}).for_backbone("tiny")
    rows = [*baseline_rows(0.5), row(4, Power(exponent=0.3), 0.4)]
    assert len(confirm_trials(config, rows)) == 12


def test_a_winner_at_another_rate_is_another_one(make_config: Make) -> None:
    config = make_config(confirm={"seeds": 1}).for_backbone("tiny")
    faster = TrialConfig(objective=PAPER_BASELINES[1], learning_rate=1e-2, seed=0)
    rows = [*baseline_rows(0.5), TrialRow("0004", faster, "FINISHED", {"eval/accuracy": 0.9})]
    last = confirm_trials(config, rows)[-1]
    assert (last.objective, last.learning_rate) == (PAPER_BASELINES[1], 1e-2)


def test_only_finished_trials_of_the_search_can_win(make_config: Make) -> None:
    config = make_config(confirm={"seeds": 1}).for_backbone("tiny")
    rows = [
        row(0, Power(exponent=0.1), 0.9, status="KILLED"),
        row(1, Power(exponent=0.2), 0.8, "confirm"),
        row(2, Power(exponent=0.3), 0.7),
    ]
    best = best_of(rows, config.search)
    assert best is not None
    assert best.trial_id == "0002"
    assert confirm_trials(config, rows[:2]) == []


def test_nothing_without_the_section(make_config: Make) -> None:
    config = make_config().for_backbone("tiny")
    assert confirm_trials(config, baseline_rows(0.5)) == []
    assert most_confirm_trials(config) == 0


@pytest.mark.parametrize("mode", ["eval/nll", "eval/accuracy"])
def test_the_better_end_of_the_metric_wins(make_config: Make, mode: str) -> None:
    config = make_config(search={"metric": mode}).for_backbone("tiny")
    rows = [
        TrialRow(str(i), row(i, Power(exponent=i), 0).trial, "FINISHED", {mode: value})
        for i, value in enumerate((0.1, 0.9))
    ]
    best = best_of(rows, config.search)
    assert best is not None
    assert best.trial_id == ("0" if mode == "eval/nll" else "1")
