"""A thousand trials on a hundred nodes, as far as one machine can have them: all that is not training is real.

    python tests/benchmarks/bench_scale.py --trials 1000 --groups 100 --seconds 60

Tune, Optuna, the board, the ledger, the mirror and MLflow run as in any sweep, on a Ray that is told of as many
processors as groups. A group is a thread that takes trials off the board, writes the metrics of so many seconds of
training and reports; it trains nothing. Prints what the driver and the head need, and how busy the groups were.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from mlflow import MlflowClient
from rich.console import Console
from telling import machine, number, table, told

from raysft.capability import BINS, LEVELS, Capability
from raysft.config import Job, SweepConfig
from raysft.progress import Progress
from raysft.publish import append
from raysft.sweep import groups
from raysft.sweep.board import Report, Wait
from raysft.sweep.driver import sweep
from raysft.sweep.session import on_loopback

PROCESSES = {"board": "ray::Board", "gcs_server": "gcs_server", "trials": "ray::ImplicitFunc"}
STEPS, EVERY = 100, 10  # of a trial; metrics are written and reported every so many


def main() -> None:
    args = _arguments()
    print(told("; ".join(f"{key} {value}" for key, value in machine(1, "cpu", ("ray", "mlflow")).items())), flush=True)
    groups._run_group = lambda board, slot, *_: stand_in(board, slot, args.seconds)
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        config = config_of(Path(folder), args.trials, args.groups)
        with on_loopback():
            quiet = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 500_000_000}
            ray.init("local", num_cpus=args.groups, **quiet)
        watch = Watch()
        watch.start()
        began = time.monotonic()
        (result,) = sweep(config, Progress(Console(file=(Path(folder) / "said.txt").open("w"))))
        wall = time.monotonic() - began
        watch.over.set()
        watch.join()
        runs = stored(config)
        ray.shutdown()
    finished = sum(row.status == "FINISHED" for row in result.trials)
    rows = {
        "trials that finished": f"{finished:,} of {len(result.trials):,}, {args.groups} at once",
        "wall, s": number(wall, ".3g"),
        "groups' time at work": f"{finished * args.seconds / (wall * args.groups):.0%}",
        "trials a second": number(finished / wall, ".3g"),
        "MLflow runs, points": f"{runs[0]:,}, {runs[1]:,}",
        "points written a second": number(runs[1] / wall, ".3g"),
        "driver: processor time, s": number(watch.seconds, ".3g"),
        "driver: memory, GiB": number(watch.peak["driver"] / 2**30, ".3g"),
        "board: memory, GiB": number(watch.peak["board"] / 2**30, ".3g"),
        "Ray's control store: memory, GiB": number(watch.peak["gcs_server"] / 2**30, ".3g"),
        "Tune's trial processes: memory, GiB": number(watch.peak["trials"] / 2**30, ".3g"),
    }
    print(table(["", "value"], [[name, value] for name, value in rows.items()]), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="the four baselines among them")
    parser.add_argument("--groups", type=int, default=100, help="that work at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="that a trial takes")
    return parser.parse_args()


def config_of(folder: Path, trials: int, at_once: int) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "scale",
            "output": str(folder / "runs"),
            "backbones": [{"name": "none", "path": "none/none"}],
            "data": {"train": {"kind": "file", "path": "none.jsonl"}},
            "training": {"steps": STEPS},
            "search": {"trials": trials - 4, "metric": "eval/nll"},
            "space": {"exponent": {"low": 0.05, "high": 10, "log": True}, "threshold": {"low": 0.05, "high": 0.5}},
            "workers": {"max_concurrent": at_once},
            "export": "none",
        }
    )


def stand_in(board: Any, slot: int, seconds: float) -> None:
    """What a group asks of the board and writes into trials' folders, without a model."""
    (study, _) = _answer(board.study, 0)
    if ray.get(board.needs_probe.remote(slot, study)):
        p = np.random.default_rng(0).beta(2, 2, 4000)
        histogram = np.histogram(p, bins=BINS, range=(0, 1))[0].tolist()
        capability = Capability(float(p.mean()), -1.0, 0.4, p.size, 100, np.quantile(p, LEVELS).tolist(), histogram)
        facts = {"train": {"fingerprint": "0" * 16, "counts": {}}, "heldout": {"fingerprint": "0" * 16, "counts": {}}}
        measured = {"capability": capability.to_dict(), "data": facts, "notes": []}
        ray.get(board.set_measurement.remote(json.dumps(measured)))
    while (job := _answer(board.take, (slot, 0), study)) is not None:
        _train(board, (slot, 0), job, seconds)


def _answer(method: Any, *args: Any) -> Any:
    while isinstance(answer := ray.get(method.remote(*args)), Wait):
        pass
    return answer


def _train(board: Any, seat: tuple[int, int], job: Job, seconds: float) -> None:
    best = abs(np.log10(0.05 + getattr(job.trial.objective, "exponent", 0.0)))
    metrics: dict[str, float] = {}
    for step in range(EVERY, STEPS + 1, EVERY):
        time.sleep(seconds * EVERY / STEPS)
        metrics = {"eval/nll": best + 1 / step}
        points = [{"step": s, "time": time.time(), "train/loss": 1 / s} for s in range(step - EVERY + 1, step)]
        lines = [*points, {"step": step, "time": time.time(), "train/loss": 1 / step, **metrics}]
        append(job.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        if step < STEPS:
            ray.get(board.report.remote(seat, job.trial_id, Report("progress", step, metrics)))
    ray.get(board.report.remote(seat, job.trial_id, Report("finished", STEPS, metrics)))


class Watch(threading.Thread):
    """Looks every few seconds at what the processes of this sweep hold."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.peak = dict.fromkeys(("driver", *PROCESSES), 0)
        self.own = psutil.Process()
        self.before = sum(self.own.cpu_times()[:2])

    def run(self) -> None:
        while not self.over.wait(5):
            held = dict.fromkeys(self.peak, 0) | {"driver": self.own.memory_info().rss}
            for process in self.own.children(recursive=True):
                try:
                    command, memory = " ".join(process.cmdline()), process.memory_info().rss
                except psutil.Error:
                    continue
                for name, word in PROCESSES.items():
                    held[name] += memory if word in command else 0
            self.peak = {name: max(most, held[name]) for name, most in self.peak.items()}

    @property
    def seconds(self) -> float:
        return sum(self.own.cpu_times()[:2]) - self.before


def stored(config: SweepConfig) -> tuple[int, int]:
    """Runs in MLflow, and points of their losses."""
    client = MlflowClient(f"sqlite:///{config.output}/mlflow.db")
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    found, page = [], None
    while page != "":
        part = client.search_runs([experiment.experiment_id], max_results=1000, page_token=page)
        found, page = [*found, *part], part.token or ""
    histories = [client.get_metric_history(run.info.run_id, "train/loss") for run in found]
    return len(found), sum(map(len, histories))


if __name__ == "__main__":
    main()
