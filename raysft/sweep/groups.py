"""The driver's side of the worker groups: one thread a slot keeps a Ray Train run alive, study after study.

A group takes seconds to start, most of them imports; so it goes on with the next backbone where that wants workers of
the same kind.
"""

import os
import threading
import time
import uuid
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any, Self

import ray
from ray.exceptions import RayActorError
from ray.util import remove_placement_group

from raysft.config import SweepConfig, WorkersConfig
from raysft.redaction import redacted
from raysft.sweep.board import Stop, start_board
from raysft.sweep.group import group_loop

# Workers import torch, transformers and deepspeed at once; on few cores that takes longer than Train waits by itself.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
# A process more for each group, which tells workers of a node that is about to go: nothing here asks it.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# How often Train looks whether a group has ended or lost a worker; by itself every 2 s, though a look takes little.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

END_SECONDS = 60.0


class GroupsInTurn:
    """The groups of one sweep's studies, which come in turn. Leaving its context lets them end."""

    def __init__(self) -> None:
        self._groups: _Groups | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close("drop")

    def open(self, study: SweepConfig, slots: int, folder: str, expected: int | None, last: bool) -> Any:
        """The board of the groups that work for the study (made by for_backbone) from now on.

        They are those of the study before where it had the same workers and as many slots. folder: of what Ray Train
        writes about its runs; expected, last: as in Board.open.
        """
        if self._groups and (self._groups.workers != study.workers or self._groups.slots < slots):
            self.close("drop")
        if self._groups is None:
            self._groups = _Groups(study.workers, slots, folder, apart=study.storage is not None)
        board = self._groups.board
        ray.get(board.open.remote(study.model_dump(mode="json"), study.search.mode == "max", expected, last))
        return board

    def end_study(self) -> None:
        """Its trials have all ended."""
        if self._groups:
            ray.get(self._groups.board.end_study.remote())

    def close(self, how: Stop) -> None:
        """Stop what runs ("drop", or "save" a checkpoint first) and wait until the groups have ended."""
        if self._groups:
            self._groups.close(how)
            self._groups = None


class _Groups:
    """Threads of the driver: Ray Train's fit() waits for its group as long as that lives."""

    def __init__(self, workers: WorkersConfig, slots: int, folder: str, apart: bool) -> None:
        self.workers, self.slots = workers, slots
        self.board = start_board(workers.max_failures)
        self._threads = [
            threading.Thread(target=_keep_group, args=(self.board, slot, workers, folder, apart), daemon=True)
            for slot in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, how: Stop) -> None:
        with suppress(RayActorError):  # without the board, the groups end by themselves
            ray.get(self.board.close.remote(how))
        deadline = time.monotonic() + END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _keep_group(board: Any, slot: int, workers: WorkersConfig, folder: str, apart: bool) -> None:
    """Start the slot's group, and start it again as often as the board wants. Runs in a thread of the driver."""
    try:
        while ray.get(board.wanted.remote(slot, not workers.reuse)):
            if (reason := _run_group(board, slot, workers, folder, apart)) is None:
                continue
            # Where Train's own process was lost, nobody else gives the workers' resources back.
            if (reserved := ray.get(board.left_behind.remote(slot))) is not None:
                remove_placement_group(reserved)
            if not ray.get(board.group_broke.remote(slot, reason)):
                return
    except RayActorError:  # the board is lost, and the sweep ends
        return


def _run_group(board: Any, slot: int, workers: WorkersConfig, folder: str, apart: bool) -> str | None:
    """One group, as long as it lives. apart: its nodes share no folder. Returns what broke it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raysft.sweep.rendezvous import torch_config

    on_gpu = workers.resources.get("GPU", 0) > 0
    with TemporaryDirectory(prefix="raysft-", ignore_cleanup_errors=True) as meeting:
        trainer = TorchTrainer(
            group_loop,
            train_loop_config={
                "board": board,
                "slot": slot,
                "workers": workers.model_dump(mode="json"),
                "apart": apart,
            },
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=on_gpu, resources_per_worker=dict(workers.resources)
            ),
            torch_config=torch_config("nccl" if on_gpu else "gloo", meeting),
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
            return root_cause(error)
    return None


def root_cause(error: BaseException) -> str:
    """One line for what broke a group, without secrets: a worker's own error where Train hands it on."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[-1].strip() if lines else ''}")
