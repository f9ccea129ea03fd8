"""A group of Ray Train workers: it works for one study after another, and runs one trial after another in each.

What belongs to a study (base weights, tokenised data) is made once by `raysft.trial.Bench`, in processes that outlive
it; rank 0 takes a trial off the board and every rank runs it.
"""

import gc
import json
import math
import os
import shutil
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Queue
from typing import Any

import ray

from raysft.config import Job, SweepConfig, WorkersConfig
from raysft.errors import InputError, TrialFailed
from raysft.quiet import libraries_quiet
from raysft.redaction import redacted
from raysft.sweep.board import Report, Stop, Wait


def group_loop(settings: dict[str, Any]) -> None:
    """Every rank of a group: work for one study after another, as the board opens them, until it is closed.

    What breaks it is raised without secrets, since Ray and Tune keep it in files.
    """
    try:
        _group_loop(settings)
    except Exception as error:
        if not _tells_secret(error):
            raise
        raise RuntimeError(redacted(traceback.format_exc().strip())) from None


def _tells_secret(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, has a secret in its text."""
    while error is not None:
        if redacted(str(error)) != str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _group_loop(settings: dict[str, Any]) -> None:
    workers = WorkersConfig.model_validate(settings["workers"])
    prepare_process(workers)
    from raysft.ranks import Ranks

    ranks = Ranks(ray.get_runtime_context().get_node_id() if settings["apart"] else None)
    slot, board = settings["slot"], settings["board"]
    seats = [Seat(board, (slot, lane)) if ranks.rank == 0 else None for lane in range(workers.lanes)]
    if seats[0]:
        seats[0].ask("started", slot, ray.util.get_current_placement_group())
    studies = 0
    while (study := ranks.broadcast(seats[0] and seats[0].ask("study", studies))) is not None:
        if isinstance(study, Wait):
            continue
        studies, config = study
        _work_for(studies, SweepConfig.model_validate(config), ranks, seats)
        gc.collect()  # that study's base model, before there is the next one's
        if not workers.reuse:
            return


def _work_for(study: int, config: SweepConfig, ranks: Any, seats: list["Seat | None"]) -> None:
    """Make the study's bench, then run what the board hands out until the study is over. study: its number."""
    from raysft.trial import Bench

    seat = seats[0]
    try:
        bench = Bench(config, "zero", ranks, _device())
    except (InputError, TrialFailed) as error:
        if seat:
            seat.ask("refuse", redacted(str(error)), study)
        return
    if ranks.broadcast(seat and seat.ask("needs_probe", seat.place[0], study)):
        measured = {"capability": bench.probe().to_dict(), "data": bench.data_facts(), "notes": bench.notes()}
        if seat:
            seat.ask("set_measurement", json.dumps(measured))
    bench.warm_up()  # while the driver reads the measurement and Tune starts
    gc.freeze()  # what lives as long as the study is left out of the collection that ends each trial
    try:
        _at_once([partial(_work, study, bench, seat) for seat in seats])
    finally:
        gc.unfreeze()


def _at_once(works: list[Callable[[], None]]) -> None:
    """Do them all at once, or the only one right here. What one raises is raised at once, whatever the others do."""
    if len(works) == 1:
        return works[0]()
    ended: Queue[BaseException | None] = Queue()

    def do(work: Callable[[], None]) -> None:
        try:
            work()
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    for work in works:  # daemons, so that one that waits for the one that broke keeps no process alive
        threading.Thread(target=do, args=(work,), daemon=True).start()
    for _ in works:
        if (error := ended.get()) is not None:
            raise error


def _work(study: int, bench: Any, seat: "Seat | None") -> None:
    """Run what the board hands out to this seat."""
    while True:
        job = bench.ranks.broadcast(seat and seat.ask("take", seat.place, study))
        if job is None:
            return
        if isinstance(job, Wait):
            continue
        _run(bench, job, seat)
        if not bench.config.workers.reuse:
            return


def prepare_process(workers: WorkersConfig) -> None:
    """Threads and environment of a worker, before torch and deepspeed are imported."""
    import warnings

    import torch

    libraries_quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(max(1, math.floor(workers.resources.get("CPU", 1))))


class Seat:
    """Rank 0's connection to the board, for one lane."""

    def __init__(self, board: Any, place: tuple[int, int]) -> None:
        self.board, self.place = board, place

    def ask(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.board, method).remote(*args))

    def report(self, trial_id: str, report: Report) -> None:
        self.ask("report", self.place, trial_id, report)

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
        if job.trial.role == "confirm":  # it was judged on other problems
            return config.export == "all"
        if config.export == "best" and seat:
            return bool(seat.ask("improves", metrics[metric]))
        return config.export == "all"

    job = _on_this_node(job, config)
    try:
        result = bench.run(job, report, seat.watch(job.trial_id) if seat else lambda: None, export)
        ended = Report(result.status, result.step, result.metrics)
    except TrialFailed as error:
        ended = Report("failed", reason=redacted(str(error)))
    if job.uri is not None and bench.ranks.keeps_files:
        shutil.rmtree(job.folder, ignore_errors=True)
    if seat:
        seat.report(job.trial_id, ended)


def _on_this_node(job: Job, config: SweepConfig) -> Job:
    """With a folder of this node's own where a bucket keeps it, so that no two nodes, nor the driver, write to one."""
    if job.uri is None:
        return job
    node = ray.get_runtime_context().get_node_id()
    study = (config.output / ".nodes" / node / config.name / config.backbone.name).absolute()
    return replace(job, folder=study / job.trial_id)


def _device() -> Any:
    import torch
    from ray.train.torch import get_device

    return get_device() if torch.cuda.is_available() else torch.device("cpu")
