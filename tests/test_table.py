"""The closing table, built from results and read as text."""

import io
import re
from collections.abc import Callable

from rich.console import Console

from raysft.capability import Capability
from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.sweep.driver import StudyResult
from raysft.sweep.ledger import Status, TrialRow
from raysft.table import result_table

Make = Callable[..., SweepConfig]
METRIC = "eval/accuracy"


def row(objective: Power, value: float | None, status: Status = "FINISHED") -> TrialRow:
    trial = TrialConfig(objective=objective, learning_rate=1e-3, seed=0)
    return TrialRow(objective.label(), trial, status, {} if value is None else {METRIC: value})


def study(name: str, trials: list[TrialRow]) -> StudyResult:
    finished = [t for t in trials if t.status == "FINISHED"]
    best = max(finished, key=lambda t: t.metrics[METRIC], default=None)
    capability = Capability(0.4567, -1.0, 0.5, 100, 10, [0.0] * 101, [5] * 20)
    return StudyResult(name, capability, trials, best, interrupted=False)


def lines(results: list[StudyResult], config: SweepConfig) -> list[list[str]]:
    """Title, then the cells of header and rows; empty cells are lost."""
    file = io.StringIO()
    Console(file=file, width=200).print(result_table(results, config))
    return [re.split(r" {2,}", line.strip()) for line in file.getvalue().splitlines() if re.search(r"\w", line)]


def test_baselines_have_a_column_each_and_the_best_its_name(make_config: Make) -> None:
    searched = row(Power(exponent=0.3), 0.9)
    strong = study("strong", [*(row(b, (i + 1) / 10) for i, b in enumerate(PAPER_BASELINES)), searched])
    weak = study("weak", [row(b, (4 - i) / 10) for i, b in enumerate(PAPER_BASELINES)])
    assert lines([strong, weak], make_config()) == [
        ["tiny: eval/accuracy"],
        ["backbone", "capability", "nll", "-p", "-p^10", "nll, p >= 0.2", "best", "objective"],
        ["strong", "0.457", "0.100", "0.200", "0.300", "0.400", "0.900", "exponent 0.3"],
        ["weak", "0.457", "0.400", "0.300", "0.200", "0.100", "0.400", "nll"],
    ]


def test_failed_and_killed_baselines_are_named(make_config: Make) -> None:
    nll, p, p10, _ = PAPER_BASELINES
    trials = [row(nll, 0.5), row(p, None, "FAILED"), row(p10, 0.9, "KILLED")]
    _, header, cells = lines([study("one", trials)], make_config())
    assert "nll, p >= 0.2" not in header  # nobody ran it
    assert cells == ["one", "0.457", "0.500", "failed", "killed", "0.500", "nll"]
    _, _, cells = lines([study("one", [row(nll, 0.5), row(p, None, "INTERRUPTED")])], make_config())
    assert cells == ["one", "0.457", "0.500", "to go on", "0.500", "nll"]


def test_a_baseline_that_only_one_backbone_ran_leaves_the_others_cell_empty(make_config: Make) -> None:
    nll, p, *_ = PAPER_BASELINES
    _, header, first, second = lines(
        [study("one", [row(nll, 0.5), row(p, 0.25)]), study("two", [row(p, 0.75)])], make_config()
    )
    assert header[2:4] == ["nll", "-p"]
    assert first == ["one", "0.457", "0.500", "0.250", "0.500", "nll"]
    assert second == ["two", "0.457", "0.750", "0.750", "-p"]


def test_a_study_in_which_nothing_finished(make_config: Make) -> None:
    _, header, cells = lines([study("one", [row(b, None, "FAILED") for b in PAPER_BASELINES])], make_config())
    assert len(header) == 8
    assert cells == ["one", "0.457", "failed", "failed", "failed", "failed", "none finished"]
    _, header, cells = lines([study("one", [])], make_config())
    assert header == ["backbone", "capability", "best", "objective"]
    assert cells == ["one", "0.457", "none finished"]
