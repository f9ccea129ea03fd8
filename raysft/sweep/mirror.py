"""Tune's callback in the driver: mirrors what trials record in their folders to MLflow and to the terminal."""

import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback

from raysft.config import TrialConfig
from raysft.progress import Progress
from raysft.store import StorageLost
from raysft.sweep.ledger import METRICS, Ledger, Status, TrialRow
from raysft.tracking import Study

SECONDS_BETWEEN_READS = 2.0
SECONDS_BETWEEN_PULLS = 10.0  # from a bucket


class Mirror(Callback):
    def __init__(self, study: Study, board: Any, ledger: Ledger, progress: Progress) -> None:
        self.study, self.board, self.ledger, self.progress = study, board, ledger, progress
        self.read: dict[str, tuple[int, int]] = {}  # trial -> its metrics file (inode) and the bytes passed on
        self.last_read = 0.0
        self.broken: Exception | None = None
        self.lost = board.lost.remote()

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune saves its callbacks; a resume makes this one anew."""
        return Callback, ()

    def catch_up(self, paused: Collection[str]) -> None:
        """Show the trials that ended or were paused before an interruption, and tell tracking what it has not heard."""
        stored = self.study.statuses()
        for row in self.ledger.rows():
            if row.ended:
                self.progress.trial_known(row)
                if stored.get(row.trial_id) != row.status:
                    self.study.start_trial(row.trial_id, row.trial)
                    self._pass_on(row.trial_id)
                    self._end_run(row)
            elif row.trial_id in paused:
                self._start(row.trial_id, row.trial)
                self._pause(row.trial_id)

    def setup(self, *_: Any, **__: Any) -> None:
        """Tune hands the stop conditions over here; there are none."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._start(trial.config["trial_id"], TrialConfig.model_validate(trial.config["trial"]))

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Raises RayActorError where the board was lost: then no trial can go on, and none has failed.

        Raises as well what broke `on_trial_complete`.
        """
        if self.broken:
            raise self.broken
        if ray.wait([self.lost], timeout=0)[0]:
            ray.get(self.lost)
        pause = SECONDS_BETWEEN_READS if self.ledger.store.uri is None else SECONDS_BETWEEN_PULLS
        if time.monotonic() - self.last_read < pause:
            return
        self.last_read = time.monotonic()
        for trial in trials:
            if trial.status == "RUNNING":
                with suppress(StorageLost):  # the next look gets it
                    self._pass_on(trial.config["trial_id"])
        self.progress.refresh()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """What Tune calls complete may be the trial's end, or its way to a rung."""
        result = trial.last_result or {}
        try:
            if result.get("kind") == "paused":
                self._pause(trial.config["trial_id"])
            elif result.get("kind") == "finished":
                self._end(trial.config, result, "FINISHED")
        except Exception as error:  # Tune would take a full disk here for a failure of the trial, and repeat that
            self.broken = error

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.board.cancel.remote(trial.config["trial_id"], "drop")
        self._end(trial.config, trial.last_result or {}, "FAILED", reason_of(trial))

    def stop(self, trial_id: str) -> None:
        """A paused trial will not be promoted any more."""
        (row,) = (row for row in self.ledger.rows() if row.trial_id == trial_id)
        step, metrics = max(self.ledger.points(trial_id).items())
        config = {"trial_id": trial_id, "trial": row.trial}
        self._end(config, metrics | {"step": step}, "KILLED", f"stopped early at step {step}")

    def _start(self, trial_id: str, trial: TrialConfig) -> None:
        self.study.start_trial(trial_id, trial)
        self.progress.trial_started(trial_id, trial)

    def _pause(self, trial_id: str) -> None:
        self._pass_on(trial_id)
        self.progress.trial_paused(trial_id)

    def _end(self, config: dict[str, Any], result: dict[str, Any], status: Status, reason: str = "") -> None:
        trial_id = config["trial_id"]
        self._pass_on(trial_id)
        metrics = {k: v for k, v in result.items() if k.startswith(("eval/", "train/", "time/"))}
        trial = TrialConfig.model_validate(config["trial"])
        row = TrialRow(trial_id, trial, status, metrics, int(result.get("step", 0)), reason)
        self._end_run(row)
        self.ledger.end(row)
        self.progress.trial_ended(row)

    def _end_run(self, row: TrialRow) -> None:
        assert row.status != "INTERRUPTED"
        completions = self.ledger.folder / row.trial_id / "completions.jsonl.gz"
        self.ledger.store.pull(completions)
        records = completions if completions.exists() else None
        self.study.end_trial(row.trial_id, row.status, row.reason, completions=records)

    def _pass_on(self, trial_id: str) -> None:
        """Hand the new lines of the trial's metrics file to tracking, which drops what it has already."""
        path = self.ledger.folder / trial_id / METRICS
        self.ledger.store.pull(path)
        if not path.exists():
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            known, start = self.read.get(trial_id, (inode, 0))
            if inode != known:  # a resume cut it back, and it may have grown beyond `start` since then
                start = 0
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.read[trial_id] = inode, start + len(whole)
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
