"""The record that a resume goes by: whole files, in order, under kills."""

import json
from pathlib import Path

from raysft.config import TrialConfig
from raysft.objectives import Power
from raysft.sweep.ledger import Ledger, TrialRow


def trial(exponent: float) -> TrialConfig:
    return TrialConfig(objective=Power(exponent=exponent), learning_rate=1e-3, seed=0)


def test_rows_come_back_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "trials")
    assert ledger.rows() == []
    ids = [ledger.begin(trial(number)) for number in range(12)]
    assert ids[:2] == ["0000", "0001"]
    end = TrialRow(ids[3], trial(3), "KILLED", {"eval/nll": 0.1}, 7, "stopped early at step 7")
    ledger.end(end)
    rows = Ledger(tmp_path / "trials").rows()
    assert [row.trial_id for row in rows] == ids
    assert [row.trial for row in rows] == [trial(number) for number in range(12)]
    assert rows[3] == end
    assert {row.status for row in rows if row is not rows[3]} == {"INTERRUPTED"}
    ledger.begin_again(ids[3])
    ledger.begin_again(ids[4])
    assert {row.status for row in ledger.rows()} == {"INTERRUPTED"}


def test_a_thousand_and_more_keep_their_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for name in ("9999", "10000", "0002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trial.json").write_text(trial(0).model_dump_json())
    assert [row.trial_id for row in ledger.rows()] == ["0002", "9999", "10000"]


def test_what_a_kill_leaves_half_done_is_not_there(tmp_path: Path) -> None:
    """Before a trial's record was published it never began; before its end was, it had not ended."""
    ledger = Ledger(tmp_path)
    first = ledger.begin(trial(0))
    (tmp_path / first / ".end.json").write_text('{"status": "FIN')
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / ".trial.json").write_text('{"objec')
    assert [(row.trial_id, row.ended) for row in ledger.rows()] == [(first, False)]
    assert ledger.begin(trial(1)) == "0001"


def test_only_finished_and_stopped_trials_have_ended(tmp_path: Path) -> None:
    ended = {status: TrialRow("0000", trial(0), status).ended for status in ("FINISHED", "KILLED", "FAILED")}
    assert ended == {"FINISHED": True, "KILLED": True, "FAILED": False}
    assert not TrialRow("0000", trial(0)).ended


def test_evaluations_are_read_back_without_a_line_that_was_cut(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    name = ledger.begin(trial(0))
    assert ledger.values(name, "eval/nll") == {}
    points = [{"step": 1, "time": 5.0, "train/loss": 1}, {"step": 2, "time": 6.0, "eval/nll": 0.5}]
    lines = "".join(json.dumps(point) + "\n" for point in points)
    (tmp_path / name / "metrics.jsonl").write_text(lines + '{"step": 3, "time": 7.0, "eval')
    assert ledger.values(name, "eval/nll") == {2: 0.5}
    assert ledger.points(name) == {1: {"time": 5.0, "train/loss": 1}, 2: {"time": 6.0, "eval/nll": 0.5}}


def test_a_promotion_is_remembered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    name = ledger.begin(trial(0))
    assert ledger.promoted(name) is None
    ledger.promote(name, 8)
    ledger.promote(name, 16)
    assert ledger.promoted(name) == 16
    assert ledger.rows() == [TrialRow(name, trial(0))]


def test_only_a_stopped_trial_loses_its_checkpoints(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for status, kept in (("KILLED", False), ("FAILED", True)):
        name = ledger.begin(trial(0))
        (tmp_path / name / "checkpoints" / "step-00000004").mkdir(parents=True)
        ledger.end(TrialRow(name, trial(0), status))  # type: ignore[arg-type]
        assert (tmp_path / name / "checkpoints").exists() == kept
