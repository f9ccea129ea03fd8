"""Tune's callback in the driver: mirrors what trials record in their folders to MLflow and to the terminal."""

import json
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from raysft.config import TrialConfig
from raysft.progress import Progress
from raysft.sweep.ledger import METRICS, Ledger, TrialRow
from raysft.tracking import Study

SECONDS_BETWEEN_READS = 2.0


class Mirror(Callback):
    def __init__(self, study: Study, board: Any, ledger: Ledger, progress: Progress) -> None:
        self.study, self.board, self.ledger, self.progress = study, board, ledger, progress
        self.read: dict[str, int] = {}  # trial -> bytes of its metrics file already passed on
        self.last_read = 0.0

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune saves its callbacks; a resume makes this one anew."""
        return Callback, ()

    def catch_up(self) -> None:
        """Show the trials that ended before an interruption, and tell tracking what it has not heard of them."""
        stored = self.study.statuses()
        for row in self.ledger.rows():
            if row.ended:
                self.progress.trial_known(row)
                if stored.get(row.trial_id) != row.status:
                    self.study.start_trial(row.trial_id, row.trial)
                    self._pass_on(row.trial_id)
                    self._end_run(row)

    def setup(self, *_: Any, **__: Any) -> None:
        """Tune hands the stop conditions over here; there are none."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        trial_id, config = trial.config["trial_id"], TrialConfig.model_validate(trial.config["trial"])
        self.study.start_trial(trial_id, config)
        self.progress.trial_started(trial_id, config)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self.last_read < SECONDS_BETWEEN_READS:
            return
        self.last_read = time.monotonic()
        for trial in trials:
            if trial.status == "RUNNING":
                self._pass_on(trial.config["trial_id"])
        self.progress.refresh()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ended by itself or stopped by the scheduler; its group drops a stopped one at the next step boundary."""
        if (trial.last_result or {}).get("finished"):
            self._end(trial, "FINISHED", "")
        else:
            self._end(trial, "KILLED", f"stopped early at step {(trial.last_result or {}).get('step', 0)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._end(trial, "FAILED", reason_of(trial))

    def _end(self, trial: Any, status: Any, reason: str) -> None:
        trial_id, result = trial.config["trial_id"], trial.last_result or {}
        if status != "FINISHED":
            self.board.cancel.remote(trial_id, "drop")
        self._pass_on(trial_id)
        metrics = {k: v for k, v in result.items() if k.startswith(("eval/", "train/", "time/"))}
        config = TrialConfig.model_validate(trial.config["trial"])
        row = TrialRow(trial_id, config, status, metrics, int(result.get("step", 0)), reason)
        self._end_run(row)
        self.ledger.end(row)
        self.progress.trial_ended(row)

    def _end_run(self, row: TrialRow) -> None:
        assert row.status != "INTERRUPTED"
        completions = self.ledger.folder / row.trial_id / "completions.jsonl.gz"
        self.study.end_trial(row.trial_id, row.status, row.reason, [completions] if completions.exists() else [])

    def _pass_on(self, trial_id: str) -> None:
        """Hand the new lines of the trial's metrics file to tracking, which drops what it has already."""
        path = self.ledger.folder / trial_id / METRICS
        if not path.exists():
            return
        start = self.read.get(trial_id, 0)
        if path.stat().st_size < start:  # cut back by a resume
            start = 0
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read[trial_id] = start + len(whole)
        points = [json.loads(line) for line in whole.splitlines()]
        if points:
            self.study.log_points(trial_id, points)
            self.progress.trial_moved(trial_id, points[-1])


def reason_of(trial: Any) -> str:
    """The last line of what a trial failed with."""
    try:
        lines = [line for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
    except (OSError, TypeError):
        return "the trial's process was lost"
    return lines[-1].split("TrialFailed: ")[-1].strip()
