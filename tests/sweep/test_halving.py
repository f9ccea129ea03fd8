"""Successive halving that remembers, across an interruption, what trials reached."""

import json
from pathlib import Path
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler

from raysft.config import AshaConfig, SearchConfig, TrialConfig
from raysft.objectives import Power
from raysft.sweep.halving import Halving, scheduler
from raysft.sweep.ledger import Ledger

SEARCH = SearchConfig(metric="eval/nll", asha=AshaConfig(grace_period=4, reduction_factor=2))


def begun(ledger: Ledger, values: dict[int, float]) -> str:
    """A trial with these evaluations on record."""
    name = ledger.begin(TrialConfig(objective=Power(), learning_rate=1e-3, seed=0))
    lines = [json.dumps({"step": s, "time": 100.0 + s, "eval/nll": v}) + "\n" for s, v in values.items()]
    (ledger.folder / name / "metrics.jsonl").write_text("".join(lines))
    return name


def tell(halving: Halving, name: str, step: int, value: float, add: bool = True) -> str:
    """What is decided on the value of a trial as Tune has it, whose own id is another in each process."""
    trial = SimpleNamespace(trial_id=str(object()), config={"trial_id": name})
    if add:
        halving.on_trial_add(None, trial)
    return halving.on_trial_result(None, trial, {"step": step, "eval/nll": value})


def of(ledger: Ledger) -> Halving:
    found = scheduler(SEARCH, ledger)
    assert isinstance(found, Halving)
    return found


def test_none_where_none_is_asked_for(tmp_path: Path) -> None:
    assert scheduler(SearchConfig(), Ledger(tmp_path)) is None


def test_a_trial_that_falls_behind_is_stopped(tmp_path: Path) -> None:
    halving = of(Ledger(tmp_path))
    assert [tell(halving, name, 4, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 0.5))] == [
        TrialScheduler.CONTINUE,
        TrialScheduler.STOP,
        TrialScheduler.CONTINUE,
    ]


def test_a_resume_compares_with_what_was_reached_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for value in (1.0, 1.1, 1.2):
        begun(ledger, {4: value})
    assert tell(of(ledger), "new", 4, 2.0) == TrialScheduler.STOP
    assert tell(of(Ledger(tmp_path / "empty")), "new", 4, 2.0) == TrialScheduler.CONTINUE


def test_a_resumed_trial_counts_once_in_a_rung(tmp_path: Path) -> None:
    """It evaluates again at steps that it had passed; only a rung that it reaches for the first time decides."""
    ledger = Ledger(tmp_path)
    for value in (0.1, 0.2):
        begun(ledger, {4: value})
    behind = begun(ledger, {4: 9.0})
    halving = of(ledger)
    assert tell(halving, behind, 4, 9.0) == TrialScheduler.CONTINUE
    (bracket,) = halving._brackets
    rung = next(recorded for milestone, recorded in bracket._rungs if milestone == 4)
    assert rung == {"0000": -0.1, "0001": -0.2, "0002": -9.0}
    begun(ledger, {8: 0.1})
    assert tell(of(ledger), behind, 8, 9.0) == TrialScheduler.STOP
