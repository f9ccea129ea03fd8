"""Memory of one worker that runs trial after trial: whether it grows, and by how much a trial."""

import ctypes
import json
import shutil
from pathlib import Path
from statistics import linear_regression
from typing import Any

from telling import MIB, resident

from raysft.config import Job, SweepConfig, TrialConfig
from raysft.objectives.power import Power


def measure(config: SweepConfig, trials: int, every: int, trim: bool, folder: Path) -> list[tuple[int, float]]:
    """(trials done, MiB resident) of the one worker of a Ray Train group, at the start and after each `every` trials.

    config: a study's. trim: first let the C library give back what it holds of freed memory.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raysft.sweep.session import ray_session

    settings = {"config": config.model_dump(mode="json"), "trials": trials, "every": every, "trim": trim}
    folder.mkdir(parents=True)
    out = folder / "memory.json"
    with ray_session():
        TorchTrainer(
            worker,
            train_loop_config=settings | {"folder": str(folder.absolute()), "out": str(out.absolute())},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="memory", storage_path=str(folder.absolute())),
        ).fit()
    return [(done, mib) for done, mib in json.loads(out.read_text())]


def worker(settings: dict[str, Any]) -> None:
    """What a group's worker does, without the board: short trials of objectives that differ."""
    from raysft.sweep.group import prepare_process

    config = SweepConfig.model_validate(settings["config"])
    prepare_process(config.workers)
    import torch

    from raysft.ranks import Ranks
    from raysft.trial import Bench

    bench = Bench(config, "zero", Ranks(), torch.device("cpu"))
    found = [(0, _mib(settings["trim"]))]
    for number in range(1, settings["trials"] + 1):
        objective = Power(exponent=number / 10)
        trial = TrialConfig(objective=objective, learning_rate=config.training.learning_rate, seed=number)
        folder = Path(settings["folder"]) / f"trial-{number}"
        bench.run(Job(folder.name, trial, folder))
        shutil.rmtree(folder)
        if number % settings["every"] == 0:
            found.append((number, _mib(settings["trim"])))
    Path(settings["out"]).write_text(json.dumps(found))


def _mib(trim: bool) -> float:
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
    return resident() / MIB


def slope(found: list[tuple[int, float]]) -> float | None:
    """MiB a trial over the second half, as the first trials load code and fill caches."""
    half = found[len(found) // 2 :]
    if len(half) < 2:
        return None
    return linear_regression([n for n, _ in half], [mib for _, mib in half]).slope
