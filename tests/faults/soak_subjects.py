"""What the soak kills, and how the harm is counted: eight trials of 120 steps, a checkpoint every 10."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import yaml
from mlflow import MlflowClient

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS, INTERVAL, TRIALS = 120, 10, 8
STEPS_FILE = "steps.txt"  # in a sweep's folder, written by traced/sitecustomize.py


@dataclass
class Tally:
    """What kills have cost. redone: steps taken again; worst_redone: of one trial after one kill, at most;
    different: trials whose losses are not those of the undisturbed sweep, bit for bit."""

    sweeps: int = 0
    restarts: int = 0
    stuck: int = 0
    trials: int = 0
    trials_lost: int = 0
    trials_doubled: int = 0
    runs_lost: int = 0
    runs_doubled: int = 0
    runs_wrong: int = 0
    metrics: int = 0
    metrics_lost: int = 0
    metrics_doubled: int = 0
    steps_taken: int = 0
    redone: int = 0
    worst_redone: int = 0
    different: int = 0

    def add(self, other: "Tally") -> None:
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(mine, its) if field.name == "worst_redone" else mine + its)


class Subject(Protocol):
    name: str
    victims: tuple[str, ...]

    def start(self, place: Path) -> "subprocess.Popen[bytes]":
        """Run the sweep of this folder, from its start or from where it was."""

    def count(self, place: Path) -> Tally:
        """Of a sweep that has ended."""


def launch(command: list[str], place: Path) -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join([str(HERE / "traced"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "STEPS_FILE": str(place / STEPS_FILE),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    with (place / "said.txt").open("ab") as said:
        return subprocess.Popen([sys.executable, *command], stdout=said, stderr=said, cwd=place, env=environment)


def steps_taken(place: Path) -> int:
    """In a sweep so far, redone ones included."""
    path = place / STEPS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def traced(place: Path) -> list[tuple[str, int]]:
    """Trial and step of each step taken, in order."""
    lines = (place / STEPS_FILE).read_text().splitlines()
    return [(trial, int(step)) for trial, step in (line.rsplit(" ", 1) for line in lines)]


def redone(steps: list[tuple[str, int]]) -> tuple[int, int]:
    """Steps taken again, in all, and of one trial at once at most."""
    last: dict[str, int] = {}
    worst = 0
    for trial, step in steps:
        worst = max(worst, last.get(trial, 0) - step + 1)
        last[trial] = step
    return len(steps) - len(set(steps)), worst


def history(client: MlflowClient, run: Any, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


class Raysft:
    """workers: of a group; with one, two groups work at once."""

    name = "raysft"
    victims = ("driver", "stop", "worker", "trial", "controller", "board")

    def __init__(self, folder: Path) -> None:
        from tests.conftest import make_backbone

        self.materials = folder / "materials"
        if not self.materials.exists():
            make_backbone(self.materials / "backbone")
            rows = [{"prompt": f"{a}+{b}?", "response": f"so {a}+{b}={a + b}"} for a in range(10) for b in range(10)]
            (self.materials / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.expected = {workers: self._undisturbed(folder, workers) for workers in (1, 2)}

    def _undisturbed(self, folder: Path, workers: int) -> dict[str, str]:
        place = folder / f"undisturbed-{workers}"
        if not place.exists():
            place.mkdir()
            self._write(place, workers)
            assert self.start(place).wait() == 0, f"see {place}/said.txt"
        return self._losses(place)

    def _write(self, place: Path, workers: int) -> None:
        values = {
            "name": "soak",
            "backbones": [{"name": "tiny", "path": str(self.materials / "backbone")}],
            "data": {
                "train": {"kind": "file", "path": str(self.materials / "train.jsonl")},
                "template": "plain",
                "max_length": 64,
                "heldout_samples": 12,
            },
            "space": {"exponent": {"low": 0.1, "high": 2.0}},
            "training": {
                "steps": STEPS,
                "global_batch_size": 8,
                "micro_batch_tokens": 40,
                "learning_rate": 3e-3,
                "precision": "fp32",
                "checkpoint_every": INTERVAL,
            },
            # Of the sampler tpe, draws depend on what has ended by then, and so on the moments of the kills.
            "search": {"trials": TRIALS - 4, "metric": "eval/nll", "sampler": "random"},
            "workers": {"count": workers, "max_failures": 1000},
            "probe": {"samples": 16},
            "export": "none",
        }
        (place / "sweep.yaml").write_text(yaml.safe_dump(values))

    def start(self, place: Path) -> "subprocess.Popen[bytes]":
        if not (place / "sweep.yaml").exists():
            self._write(place, workers=1 + sum(map(ord, place.name)) % 2)
        held = (place / "runs" / "soak" / "tiny").exists()  # a kill may have come before there was anything to resume
        return launch(["-m", "raysft", "sweep", "sweep.yaml", *(["--resume"] if held else [])], place)

    def _losses(self, place: Path) -> dict[str, str]:
        """trial's config -> its losses, as they are written."""
        found = {}
        for metrics in sorted((place / "runs" / "soak" / "tiny" / "trials").glob("*/metrics.jsonl")):
            points = [json.loads(line) for line in metrics.read_text().splitlines()]
            curve = [(point["step"], point["train/loss"]) for point in points]
            found[metrics.with_name("trial.json").read_text()] = repr(curve)
        return found

    def count(self, place: Path) -> Tally:
        from raysft.sweep.ledger import Ledger

        rows = Ledger(place / "runs" / "soak" / "tiny" / "trials").rows()
        workers = yaml.safe_load((place / "sweep.yaml").read_text())["workers"]["count"]
        again, worst = redone(traced(place))
        tally = Tally(sweeps=1, trials=TRIALS, steps_taken=steps_taken(place), redone=again, worst_redone=worst)
        tally.trials_lost = TRIALS - sum(row.status == "FINISHED" for row in rows)
        tally.trials_doubled = len(rows) - len({row.trial.model_dump_json() for row in rows})
        losses = self._losses(place)
        tally.different = sum(losses.get(trial) != curve for trial, curve in self.expected[workers].items())
        client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
        experiment = client.get_experiment_by_name("soak")
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        named = Counter(run.data.tags["raysft.trial_id"] for run in children)
        tally.runs_lost = len({row.trial_id for row in rows} - named.keys())
        tally.runs_doubled = sum(named.values()) - len(named) + len(runs) - len(children) - 1
        tally.runs_wrong = sum(run.info.status != "FINISHED" for run in runs)
        for run in children:
            steps = history(client, run, "train/loss")
            tally.metrics += STEPS
            tally.metrics_lost += len(set(range(1, STEPS + 1)) - set(steps))
            tally.metrics_doubled += len(steps) - len(set(steps))
        return tally


class Plain:
    name = "plain"
    victims = ("driver", "worker", "trial", "controller")

    def __init__(self, folder: Path) -> None:
        from tests.conftest import make_backbone

        self.backbone = folder / "materials" / "backbone"
        if not self.backbone.exists():
            make_backbone(self.backbone)
        place = folder / "undisturbed-plain"
        if not place.exists():
            place.mkdir()
            assert self.start(place).wait() == 0, f"see {place}/said.txt"
        self.expected = {trial: dict(points) for trial, points in self._points(place).items()}

    def start(self, place: Path) -> "subprocess.Popen[bytes]":
        return launch([str(HERE / "plain_recipe.py"), str(place), str(self.backbone)], place)

    def _runs(self, place: Path) -> tuple[MlflowClient, list[Any]]:
        client = MlflowClient(f"sqlite:///{place}/mlflow.db")
        experiment = client.get_experiment_by_name("plain")
        return client, list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []

    def _points(self, place: Path) -> dict[str, list[tuple[int, float]]]:
        """exponent -> (step, loss) of every report, over all runs of that trial, oldest first."""
        client, runs = self._runs(place)
        found: dict[str, list[tuple[int, float]]] = {}
        for run in sorted(runs, key=lambda run: run.info.start_time):
            steps = client.get_metric_history(run.info.run_id, "step")
            losses = client.get_metric_history(run.info.run_id, "loss")
            points = [(int(step.value), loss.value) for step, loss in zip(steps, losses, strict=False)]
            found.setdefault(run.data.params.get("exponent", "?"), []).extend(points)
        return found

    def count(self, place: Path) -> Tally:
        from plain_recipe import EXPONENTS

        again, worst = redone(traced(place))
        tally = Tally(sweeps=1, trials=TRIALS, steps_taken=steps_taken(place), redone=again, worst_redone=worst)
        _, runs = self._runs(place)
        points, steps_of = self._points(place), traced(place)
        named = Counter(run.data.params.get("exponent", "?") for run in runs)
        due = set(range(INTERVAL, STEPS + 1, INTERVAL))
        for exponent in map(str, EXPONENTS):
            steps = [step for step, _ in points.get(exponent, [])]
            taken = {step for trial, step in steps_of if trial == exponent}
            tally.trials_lost += max(taken, default=0) < STEPS
            tally.runs_lost += named[exponent] == 0
            tally.runs_doubled += max(0, named[exponent] - 1)
            tally.metrics += len(due)
            tally.metrics_lost += len(due - set(steps))
            tally.metrics_doubled += len(steps) - len(set(steps))
            mine, its = dict(points.get(exponent, [])), self.expected[exponent]
            tally.different += any(not math.isclose(mine[step], its[step], rel_tol=0) for step in mine.keys() & its)
        tally.runs_wrong = sum(run.info.status != "FINISHED" for run in runs)
        return tally


SUBJECTS: dict[str, Any] = {"raysft": Raysft, "plain": Plain}
