"""A group of Ray Train workers that runs one trial after another, and the task that keeps it running.

What belongs to the group (processes, imports, process group, base weights, tokenised data) is made once by
`raysft.trial.Bench`; rank 0 takes a trial off the board and every rank runs it.
"""

import gc
import json
import logging
import math
import os
import uuid
from pathlib import Path
from typing import Any

import ray

from raysft.config import SweepConfig
from raysft.errors import InputError, TrialFailed
from raysft.quiet import libraries_quiet
from raysft.sweep.board import Report, Stop, Wait

# Workers import torch, transformers and deepspeed at once; on few cores that takes longer than Train waits by itself.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
# How often Train looks whether a group has ended or lost a worker; by itself every 2 s, though a look takes little.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

log = logging.getLogger(__name__)


def keep_group(board: Any, slot: int, config: SweepConfig, folder: str) -> None:
    """Start the slot's group, and start it again as often as the board wants. Runs in a thread of the driver."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = config.workers
    on_gpu = workers.resources.get("GPU", 0) > 0
    while ray.get(board.wanted.remote(slot, not workers.reuse)):
        trainer = TorchTrainer(
            group_loop,
            train_loop_config={"board": board, "slot": slot, "config": config.model_dump(mode="json")},
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=on_gpu, resources_per_worker=dict(workers.resources)
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            # The board restarts groups, trial by trial: Train's own restarts know nothing of trials.
            run_config=RunConfig(
                name=f"slot-{slot}-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            if not ray.get(board.group_broke.remote(slot, root_cause(error))):
                return


def root_cause(error: BaseException) -> str:
    """One line for what broke a group: a worker's own error where Train hands it on."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def group_loop(settings: dict[str, Any]) -> None:
    """Every rank of a group: make the bench, then run what the board hands out until it is closed."""
    prepare_process(settings["config"])
    from raysft.ranks import Ranks
    from raysft.trial import Bench

    ranks = Ranks()
    slot = settings["slot"]
    config = SweepConfig.model_validate(settings["config"])
    seat = Seat(settings["board"], slot) if ranks.rank == 0 else None
    try:
        bench = Bench(config, "zero", ranks, _device())
    except (InputError, TrialFailed) as error:
        if seat:
            seat.ask("refuse", str(error))
        return
    if ranks.broadcast(seat and seat.ask("needs_probe", slot)):
        measured = {"capability": bench.probe().to_dict(), "data": bench.data_facts(), "notes": bench.notes()}
        if seat:
            seat.ask("set_measurement", json.dumps(measured))
    gc.freeze()  # what lives as long as the group is left out of the collection that ends each trial
    while True:
        job = ranks.broadcast(seat and seat.ask("take", slot))
        if job is None:
            return
        if isinstance(job, Wait):
            continue
        _run(bench, job, seat)
        if not config.workers.reuse:
            return


def prepare_process(config: dict[str, Any]) -> None:
    """Threads and environment of a worker, before torch and deepspeed are imported."""
    import warnings

    import torch

    libraries_quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(max(1, math.floor(config["workers"]["resources"].get("CPU", 1))))


class Seat:
    """Rank 0's connection to the board."""

    def __init__(self, board: Any, slot: int) -> None:
        self.board, self.slot = board, slot

    def ask(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.board, method).remote(*args))

    def report(self, trial_id: str, report: Report) -> None:
        self.ask("report", self.slot, trial_id, report)

    def watch(self, trial_id: str) -> Any:
        """A function that says, without waiting, whether the trial is to stop; it raises where the board is gone."""
        future = self.board.cancelled.remote(trial_id)

        def stop() -> Stop | None:
            ready, _ = ray.wait([future], timeout=0)
            return ray.get(future) if ready else None

        return stop


def _run(bench: Any, job: Any, seat: Seat | None) -> None:
    """One trial. A trial that failed on every rank alike is reported; any other error breaks the group."""
    config: SweepConfig = bench.config
    metric = config.search.metric

    def report(step: int, metrics: dict[str, float]) -> None:
        if seat and metric in metrics:
            seat.report(job.trial_id, Report("progress", step, metrics))

    def export(metrics: dict[str, float]) -> bool:
        if config.export == "best" and seat:
            return bool(seat.ask("improves", metrics[metric]))
        return config.export == "all"

    try:
        result = bench.run(job, report, seat.watch(job.trial_id) if seat else lambda: None, export)
        ended = Report(result.status, result.step, result.metrics)
    except TrialFailed as error:
        ended = Report("failed", reason=str(error))
    if seat:
        seat.report(job.trial_id, ended)


def _device() -> Any:
    import torch
    from ray.train.torch import get_device

    return get_device() if torch.cuda.is_available() else torch.device("cpu")


def groups_folder(folder: Path) -> str:
    return str((folder / "groups").resolve())
