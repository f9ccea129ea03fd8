"""Kills a sweep at random, again and again, and counts what that cost: raysft, and beside it a plain recipe.

    python tests/faults/soak.py --kills 100 --hours 1 --subjects raysft,plain --output FILE.json

A kill comes at any moment of a start, or after a random number of further steps. What has ended by a kill is started
anew as a user would: raysft with --resume, the plain recipe by Tune's restore. Each sweep goes on to its end, is then
counted against an undisturbed one, and the next begins, until there were enough kills or the time is over.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from soak_subjects import INTERVAL, SUBJECTS, Subject, Tally, steps_taken

# What is killed, and how it is known: by a word of its command line, or as the process that was started itself.
VICTIMS: dict[str, tuple[str, signal.Signals]] = {
    "driver": ("", signal.SIGKILL),
    "stop": ("", signal.SIGINT),
    "worker": ("RayTrainWorker", signal.SIGKILL),
    "trial": ("ImplicitFunc", signal.SIGKILL),
    "controller": ("TrainController", signal.SIGKILL),
    "board": ("ray::Board", signal.SIGKILL),
}
ENDS_IT = ("driver", "stop", "board")
STUCK_SECONDS = 600.0  # without a step or an end


@dataclass
class Soak:
    """One subject's kills. give_up: when no further sweep begins and none is disturbed any more, on the clock."""

    subject: Subject
    victims: list[str]
    most: int
    give_up: float
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def run(self, folder: Path) -> None:
        number = 0
        while self._goes_on():
            number += 1
            place = folder / f"{self.subject.name}-{number}"
            place.mkdir()
            self._one_sweep(place)
            counted = self.subject.count(place)
            self.tally.add(counted)
            print(f"{self.subject.name} sweep {number}: kills so far {dict(self.kills)}, {counted}", flush=True)

    def _goes_on(self) -> bool:
        return sum(self.kills.values()) < self.most and time.monotonic() < self.give_up

    def _one_sweep(self, place: Path) -> None:
        """Start, kill and start again until it has ended by itself."""
        while True:
            process = self.subject.start(place)
            killed = self._disturb(process, place)
            if process.wait() == 0:
                return
            if not killed:
                self.tally.restarts += 1  # it ended with an error while its own process was left alone
                if self.tally.restarts > 20:
                    raise SystemExit(f"{self.subject.name} fails again and again: see {place}")

    def _disturb(self, process: "subprocess.Popen[bytes]", place: Path) -> bool:
        """Kill parts of it until it ends. Returns whether its own process was among them."""
        while True:
            ready = self._moment(place)
            last_sign, before = time.monotonic(), 0
            while process.poll() is None and not (self._goes_on() and ready()):
                if (now := steps_taken(place)) != before:
                    last_sign, before = time.monotonic(), now
                if time.monotonic() - last_sign > STUCK_SECONDS:
                    self.tally.stuck += 1
                    end(process)
                    return True
                time.sleep(0.02)
            if process.poll() is not None:
                return False
            kind = self.random.choice(self.victims)
            if self._kill(kind, process):
                self.kills[kind] += 1
                if kind in ENDS_IT:
                    return True

    def _moment(self, place: Path) -> Callable[[], bool]:
        """Whether the time of the next kill has come."""
        if self.random.random() < 0.25:
            at = time.monotonic() + self.random.uniform(2, 30)
            return lambda: time.monotonic() >= at
        enough = steps_taken(place) + self.random.randint(1, 20 * INTERVAL)
        return lambda: steps_taken(place) >= enough

    def _kill(self, kind: str, process: "subprocess.Popen[bytes]") -> bool:
        """Whether there was such a process."""
        word, how = VICTIMS[kind]
        everything = descendants(process.pid) if word else [psutil.Process(process.pid)]
        found = [one for one in everything if word in command_of(one)]
        if not found:
            return False
        try:
            self.random.choice(found).send_signal(how)
        except psutil.NoSuchProcess:
            return False
        return True


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(process: "subprocess.Popen[bytes]") -> None:
    for child in [*descendants(process.pid), psutil.Process(process.pid)]:
        child.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each subject")
    parser.add_argument("--hours", type=float, default=1.0, help="of each subject")
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--victims", default=",".join(VICTIMS), help="raysft's; the plain recipe has no stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="of the figures, as JSON")
    parser.add_argument("--keep", type=Path, help="folder of the sweeps; default: one that is removed")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(exist_ok=True)
    figures = {}
    for name in options.subjects.split(","):
        subject = SUBJECTS[name](folder)
        victims = [kind for kind in options.victims.split(",") if kind in subject.victims]
        give_up = time.monotonic() + 3600 * options.hours
        soak = Soak(subject, victims, options.kills, give_up, random.Random(options.seed))
        soak.run(folder)
        figures[name] = {"kills": dict(soak.kills), **asdict(soak.tally)}
        print(name, json.dumps(figures[name]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1))
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
