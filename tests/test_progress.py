"""What a person sees: plain lines in a file, a table on a terminal."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.progress import SHOWN, Progress
from raysft.sweep.ledger import TrialRow

Make = Callable[..., SweepConfig]
METRIC = "eval/accuracy"


def trial(exponent: float, threshold: float | None = None) -> TrialConfig:
    objective = Power(exponent=exponent, threshold=threshold)
    return TrialConfig(objective=objective, learning_rate=1e-3, seed=0)


def shown(terminal: bool) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(Console(file=file, force_terminal=terminal, width=120, color_system=None)), file


def run(progress: Progress, trial_id: str, exponent: float, value: float, seconds: float = 0) -> None:
    """A trial from its start to its end, that began so many seconds ago."""
    progress.trial_started(trial_id, trial(exponent))
    progress.lines[trial_id].started -= seconds
    progress.trial_ended(TrialRow(trial_id, trial(exponent), "FINISHED", {METRIC: value}))


def test_lines_of_a_study(make_config: Make) -> None:
    progress, file = shown(terminal=False)
    progress.study(make_config(), total=3, slots=1)
    progress.capability(0.12345)
    progress.note("samples are padded")
    run(progress, "a", 0, 0.5, seconds=100)
    progress.trial_started("b", trial(0, threshold=0.2))
    progress.trial_moved("b", {"step": 2, "train/loss": 1.5, METRIC: 0.25})
    progress.refresh()
    progress.trial_ended(TrialRow("b", trial(0, threshold=0.2), "KILLED", reason="[early] stop"))
    progress.trial_started("c", trial(10))
    progress.trial_ended(TrialRow("c", trial(10), "FAILED", reason="the loss is nan"))
    progress.ended(interrupted=False)
    lines = file.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[9:] for line in lines] == [
        "tiny: 3 trials, 1 at once; workers start, the base model is probed",
        "tiny: capability 0.123 (mean probability of the training targets)",
        "tiny: samples are padded",
        "tiny 1/3 nll: finished eval/accuracy 0.5000, 100 s, 3 min left",
        "tiny 2/3 nll, p >= 0.2: killed ([early] stop) eval/accuracy 0.2500, 0 s, 50 s left",
        "tiny 3/3 -p^10: failed (the loss is nan), 0 s",
    ]


HALVING = {
    "search": {"trials": 2, "asha": {"grace_period": 2}},
    "evaluation": {"every": 2, "generation": {"answer_pattern": "#"}},
}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_paused_trial_is_neither_running_nor_done(make_config: Make, terminal: bool) -> None:
    progress, file = shown(terminal)
    progress.study(make_config(**HALVING), total=3, slots=1)
    for name, exponent, seconds in (("a", 1, 10), ("b", 2, 20)):
        progress.trial_started(name, trial(exponent))
        progress.lines[name].started -= seconds
        progress.trial_moved(name, {"step": 2, METRIC: 0.25 * exponent})
        progress.trial_paused(name)
        progress.lines[name].started -= 1000  # time passes, but not for it
    progress.trial_started("a", trial(1))
    progress.lines["a"].started -= 30
    progress.refresh()
    progress.trial_ended(TrialRow("a", trial(1), "FINISHED", {METRIC: 0.75}))
    progress.ended(interrupted=False)
    said = file.getvalue()
    if terminal:
        last = said[said.rindex("tiny: 3 trials") :]
        assert re.search(r"-p\^2 +2 +0\.5000 +20 s +paused\s+-p +2 +0\.7500 +40 s +finished", last)
        assert "1/3 done; best so far: -p (0.7500)" in last
        assert "left" not in last, "the time of a whole trial says nothing of those that are paused"
    else:
        assert [line[9:] for line in said.splitlines()[1:]] == [
            "tiny 0/3 -p: paused at step 2 eval/accuracy 0.2500",
            "tiny 0/3 -p^2: paused at step 2 eval/accuracy 0.5000",
            "tiny 0/3 -p: goes on",
            "tiny 1/3 -p: finished eval/accuracy 0.7500, 40 s",
        ]


def test_interrupted_study_says_so(make_config: Make) -> None:
    progress, file = shown(terminal=False)
    progress.study(make_config(), total=3, slots=1)
    progress.ended(interrupted=True)
    assert file.getvalue().rstrip().endswith("tiny: interrupted")


def test_trials_that_ended_before_a_resume_count_but_teach_no_duration(make_config: Make) -> None:
    for terminal in (False, True):
        progress, file = shown(terminal)
        progress.study(make_config(), total=4, slots=1)
        progress.trial_known(TrialRow("a", trial(0), "FINISHED", {METRIC: 0.75}, step=6))
        run(progress, "b", 1, 0.5, seconds=100)
        progress.ended(interrupted=False)
        said = file.getvalue()
        if terminal:
            assert re.search(r"nll +6 +0\.7500 +earlier +finished", said)
            assert "2/4 done; best so far: nll (0.7500); about 3 min left" in said
        else:
            assert "tiny 1/4 nll: finished earlier" in said
            assert "tiny 2/4 -p: finished eval/accuracy 0.5000, 100 s, 3 min left" in said


@pytest.mark.parametrize(
    ("seconds", "total", "slots", "left"),
    [(10, 3, 1, "20 s"), (100, 4, 1, "5 min"), (100, 5, 2, "3 min"), (3600, 4, 1, "3.0 h"), (10, 1, 1, "")],
)
def test_time_left(make_config: Make, seconds: float, total: int, slots: int, left: str) -> None:
    progress, file = shown(terminal=False)
    progress.study(make_config(), total, slots)
    run(progress, "a", 1, 0.5, seconds)
    line = file.getvalue().splitlines()[-1]
    assert line.endswith(f", {left} left" if left else f"{seconds} s")


def test_table_on_a_terminal(make_config: Make) -> None:
    progress, file = shown(terminal=True)
    progress.study(make_config(), total=4, slots=1)
    progress.capability(0.5)
    progress.note("samples are padded")
    run(progress, "a", 0, 0.25, seconds=100)
    run(progress, "b", 1, 0.75, seconds=100)
    progress.trial_started("c", trial(0.5))
    progress.trial_moved("c", {"step": 7, "train/loss": 1.25, METRIC: 0.875})
    progress.trial_moved("c", {"step": 8, "train/loss": 1.125})
    progress.trial_started("d", trial(10))
    progress.trial_ended(TrialRow("d", trial(10), "FAILED", reason="the loss is nan"))
    progress.refresh()
    progress.ended(interrupted=False)
    screen = file.getvalue()
    last = screen[screen.rindex("tiny: 4 trials, 1 at once, capability 0.500") :]
    assert "samples are padded" in last
    assert re.search(r"objective +step +train/loss +eval/accuracy +time +status", last)
    assert re.search(r"nll +0 +0\.2500 +100 s +finished", last)
    assert re.search(r"-p +0 +0\.7500 +100 s +finished", last)
    assert re.search(r"exponent 0\.5 +8 +1\.1250 +0\.8750 +0 s +running", last)
    assert re.search(r"-p\^10 +0 +0 s +failed", last)
    assert "3/4 done; best so far: -p (0.7500); about 67 s left" in last  # a running trial is not yet the best
    assert not progress.live


def test_smaller_is_better_where_the_metric_is_a_loss(make_config: Make) -> None:
    progress, file = shown(terminal=True)
    progress.study(make_config(search={"metric": "eval/nll"}), total=2, slots=1)
    for name, exponent, value in (("a", 0, 0.25), ("b", 1, 0.75)):
        progress.trial_started(name, trial(exponent))
        progress.trial_ended(TrialRow(name, trial(exponent), "FINISHED", {"eval/nll": value}))
    progress.ended(interrupted=False)
    assert "2/2 done; best so far: nll (0.2500)" in file.getvalue()
    assert "left" not in file.getvalue()[file.getvalue().rindex("2/2 done") :]


def test_long_studies_show_their_newest_trials(make_config: Make) -> None:
    progress, file = shown(terminal=True)
    progress.study(make_config(), total=SHOWN + 5, slots=1)
    for number in range(2, SHOWN + 7):
        run(progress, str(number), number, 1 / number)
    progress.ended(interrupted=False)
    last = file.getvalue()[file.getvalue().rindex("tiny: ") :]
    assert [int(n) for n in re.findall(r"-p\^(\d+) +0 ", last)] == list(range(7, SHOWN + 7))
    assert "best so far: -p^2 (0.5000)" in last


def test_a_second_study_starts_empty(make_config: Make) -> None:
    progress, file = shown(terminal=False)
    for _ in range(2):
        progress.study(make_config(), total=1, slots=1)
        run(progress, "a", 1, 0.5)
        progress.ended(interrupted=False)
    assert file.getvalue().count("tiny 1/1 -p: finished") == 2
