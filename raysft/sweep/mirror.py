"""Tune's callback in the driver: mirrors what trials record in their folders to MLflow and to the terminal."""

import json
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from raysft.config import TrialConfig
from raysft.progress import Progress
from raysft.tracking import Study

SECONDS_BETWEEN_READS = 2.0


class Mirror(Callback):
    def __init__(self, study: Study, board: Any, folder: Path, progress: Progress) -> None:
        self.study, self.board, self.folder, self.progress = study, board, folder, progress
        self.read: dict[str, int] = {}  # trial -> bytes of its metrics file already passed on
        self.last_read = 0.0
        self.ended: set[str] = set()

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune saves its callbacks; this one is made anew by whoever restores."""
        return Callback, ()

    def interrupted(self, total: int) -> bool:
        """Whether Tune came back before all trials had ended."""
        return len(self.ended) < total

    def ended_earlier(self, trials: list[Any]) -> None:
        """Trials as Tune brings them back after an interruption; it starts those again that had not ended well."""
        for trial in trials:
            if trial.status == Trial.TERMINATED:
                self.ended.add(trial.trial_id)
                result = trial.last_result or {}
                status = "finished" if result.get("finished") else "killed"
                self.progress.trial_known(
                    trial.trial_id, TrialConfig.model_validate(trial.config["trial"]), status, result
                )

    def setup(self, *_: Any, **__: Any) -> None:
        """Tune hands the stop conditions over here; there are none."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        config = TrialConfig.model_validate(trial.config["trial"])
        self.study.start_trial(trial.trial_id, config)
        self.progress.trial_started(trial.trial_id, config)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self.last_read < SECONDS_BETWEEN_READS:
            return
        self.last_read = time.monotonic()
        for trial in trials:
            if trial.status == "RUNNING":
                self._pass_on(trial.trial_id)
        self.progress.refresh()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Ended by itself or stopped by the scheduler; its group drops a stopped one at the next step boundary."""
        result = trial.last_result or {}
        self._pass_on(trial.trial_id)
        if result.get("finished"):
            self._end(trial.trial_id, "FINISHED", "", result)
        else:
            self.board.cancel.remote(trial.trial_id, "drop")
            self._end(trial.trial_id, "KILLED", f"stopped early at step {result.get('step', 0)}", result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.board.cancel.remote(trial.trial_id, "drop")
        self._pass_on(trial.trial_id)
        self._end(trial.trial_id, "FAILED", reason_of(trial), trial.last_result or {})

    def _end(self, trial_id: str, status: Any, reason: str, result: dict[str, Any]) -> None:
        self.ended.add(trial_id)
        completions = self.folder / "trials" / trial_id / "completions.jsonl.gz"
        self.study.end_trial(trial_id, status, reason, [completions] if completions.exists() else [])
        self.progress.trial_ended(trial_id, status, result, reason)

    def _pass_on(self, trial_id: str) -> None:
        """Hand the new lines of the trial's metrics file to tracking, which drops what it has already."""
        path = self.folder / "trials" / trial_id / "metrics.jsonl"
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
