"""A group of gloo workers without Ray: forked from a process that has imported all they need, so one starts at once."""

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from raysft.config import Job, SweepConfig, TrialConfig
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.trial import Bench

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["raysft.training.zero", "tests.training.workers"])


def start_group(count: int, meet: Path, work: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Processes that call work(*args) in one process group. meet: a file that is not there yet."""
    own = dict(os.environ)  # the server that forks them began with another one
    ranks = [CONTEXT.Process(target=_as_rank, args=(rank, count, meet, own, work, args)) for rank in range(count)]
    for process in ranks:
        process.start()
    return ranks


def run_group(count: int, meet: Path, work: Callable[..., None], *args: Any) -> None:
    """The same, to its end."""
    ranks = start_group(count, meet, work, *args)
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0] * count


def end_group(ranks: list[BaseProcess]) -> None:
    """What lives of it, killed."""
    for process in ranks:
        process.kill()
        process.join()


def _as_rank(
    rank: int, count: int, meet: Path, environment: dict[str, str], work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
    }  # DeepSpeed asks for them
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=count)
    work(*args)
    torch.distributed.destroy_process_group()


def train(config: str, trial: str, folder: Path, stop_after: int | None = None, uri: str | None = None) -> None:
    """One trial of a study, by DeepSpeed; with stop_after, saved at the end of that step.

    uri: of a bucket that keeps the folder; each worker is then on a machine of its own, with nothing on its disk.
    """
    libraries_quiet()
    if uri:
        folder = Path(tempfile.mkdtemp(dir=folder.parent)) / folder.name
    ranks, asked = Ranks(str(folder) if uri else None), 0

    def stop() -> Any:
        nonlocal asked
        asked += 1
        return "save" if asked == stop_after else None

    study = SweepConfig.model_validate_json(config)
    study = study.model_copy(update={"workers": study.workers.model_copy(update={"count": ranks.world})})
    bench = Bench(study, "zero", ranks, torch.device("cpu"))
    bench.run(Job(folder.name, TrialConfig.model_validate_json(trial), folder, uri=uri), stop=stop)
