"""Runs of a sweep as a user starts them, and what their trials' own records say of where the time went."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from raysft.config import SweepConfig
from raysft.sweepfile import load

STEP = ("data", "forward", "head", "backward", "optimizer", "communication")  # phases of a trial's clock


@dataclass(frozen=True)
class Busy:
    """One trial: Unix seconds of its first step's start and its evaluation's end, and the seconds of work in between.

    What is neither steps nor evaluation, such as checkpoints, is no work.
    """

    start: float
    end: float
    steps: float
    evaluation: float

    @property
    def seconds(self) -> float:
        return self.steps + self.evaluation


@dataclass(frozen=True)
class Study:
    """One backbone's trials in the order in which they began, and how many could run at once."""

    backbone: str
    slots: int
    trials: tuple[Busy, ...]

    @property
    def up(self) -> float:
        """Seconds from the first trial's start to the last one's end."""
        return max(t.end for t in self.trials) - min(t.start for t in self.trials)

    @property
    def busy(self) -> float:
        return sum(t.seconds for t in self.trials)

    def gaps(self) -> list[float]:
        """Seconds in a slot between one trial's end and the next one's first step, in the order of those steps."""
        free: list[float] = []  # ends of the trials that are over, one a slot
        found = []
        for trial in self.trials:
            earlier = [end for end in free if end <= trial.start]
            if earlier and len(free) >= self.slots:
                free.remove(min(earlier))
                found.append(trial.start - min(earlier))
            free.append(trial.end)
        return found


@dataclass(frozen=True)
class Run:
    started: float
    wall: float
    studies: tuple[Study, ...]

    def facts(self) -> dict[str, Any]:
        """Seconds; efficiencies are the share of the slots' time that was work."""
        busy = sum(s.busy for s in self.studies)
        gaps = [gap for study in self.studies for gap in study.gaps()]
        quarter = max(1, len(gaps) // 4)
        slots = max(s.slots for s in self.studies)
        return {
            "wall": self.wall,
            "until_first_trial": min(t.start for s in self.studies for t in s.trials) - self.started,
            "trials": sum(len(s.trials) for s in self.studies),
            "slots": slots,
            "busy": busy,
            "steps": sum(t.steps for s in self.studies for t in s.trials),
            "evaluation": sum(t.evaluation for s in self.studies for t in s.trials),
            "efficiency": busy / (self.wall * slots),
            "efficiency_up": busy / sum(s.up * s.slots for s in self.studies),
            "gap": median(gaps) if gaps else None,
            "gap_first": median(gaps[:quarter]) if gaps else None,
            "gap_last": median(gaps[-quarter:]) if gaps else None,
            "gaps": gaps,
        }


def run(file: Path, output: Path, sets: Sequence[str], slots: int) -> Run:
    """`raysft sweep` in a process of its own, from its start to its end. Exits where a trial fails."""
    sets = [*sets, f"output={json.dumps(str(output))}", f"workers.max_concurrent={slots}"]
    command = [sys.executable, "-m", "raysft", "sweep", str(file)]
    command += [part for text in sets for part in ("--set", text)]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.time() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    config = load(file, sets)
    said = dict(re.findall(r"(\S+): \d+ trials, (\d+) at once", done.stdout))
    studies = [read_study(config.for_backbone(b.name), int(said[b.name])) for b in config.backbones]
    return Run(started, wall, tuple(studies))


def read_study(config: SweepConfig, slots: int) -> Study:
    """config: a study's that ran."""
    folders = sorted((config.folder / config.backbone.name / "trials").iterdir())
    trials = sorted((busy_seconds(folder) for folder in folders), key=lambda trial: trial.start)
    return Study(config.backbone.name, slots, tuple(trials))


def busy_seconds(folder: Path) -> Busy:
    """Of a trial's folder, from the clock that its last line holds."""
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    spent = {phase: line["time/seconds"] * line.get(f"time/{phase}", 0.0) for phase in ("start", "evaluation", *STEP)}
    start = line["time"] - line["time/seconds"] + spent["start"]
    return Busy(start, line["time"], sum(spent[phase] for phase in STEP), spent["evaluation"])
