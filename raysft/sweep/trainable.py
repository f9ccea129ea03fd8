"""Tune's trainable. Imports little, because every trial that runs at once is a process of its own."""

from typing import Any

import ray
from ray import tune

from raysft.config import Job, TrialConfig
from raysft.errors import TrialFailed
from raysft.store import Store


def run_trial(params: dict[str, Any], board: Any, store: Store) -> None:
    """Tune's trainable: pins the trial to the board and passes its reports on. store: of the study's trials.

    One call is the trial's way to its end or to the rung where it is paused (`until`).
    """
    trial_id = params["trial_id"]
    trial, place = TrialConfig.model_validate(params["trial"]), store.below(trial_id)
    job = Job(trial_id, trial, place.folder, params["until"], place.uri)
    ray.get(board.submit.remote(trial_id, job))
    seen = 0
    while True:
        for report in ray.get(board.reports.remote(trial_id, seen)):
            seen += 1
            if report.kind == "failed":
                raise TrialFailed(report.reason)
            if report.kind in ("progress", "finished", "paused"):
                tune.report({**report.metrics, "step": report.step, "kind": report.kind})
            if report.ends:
                return
