"""Judgements by processes that are killed when they take too long. No signals or threads: Ray's workers have both."""

import atexit
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import torch

import raysft

START_SECONDS = 300.0  # for a process's imports, on a machine under load
TIMEOUT: Literal["timeout"] = "timeout"

PACKAGE = str(Path(raysft.__file__).parents[1])  # a worker of a cluster may have it from elsewhere than PYTHONPATH
PROCESSES = 4  # at most: a group has few cores, and a judgement takes milliseconds

Question = tuple[str | float, ...]  # what the program's judge is given
Verdict = float | Literal["timeout"]


class Judge:
    """One process, started when it is first asked and again after it was killed. program: a module with a `main` that
    serves as `raysft.judging` has it.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.process: subprocess.Popen[str] | None = None
        self.number = -1  # of the question that it works on
        self.deadline = 0.0
        self.late = START_SECONDS
        self.question: Any = None

    def ask(self, number: int, question: Question, seconds: float) -> None:
        fresh = self.process is None
        if self.process is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            code = f"import sys; sys.path.insert(0, {PACKAGE!r}); from {self.program} import main; main()"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        self.number, self.late = number, seconds
        self.question = [*question, seconds]
        self.deadline = time.monotonic() + (START_SECONDS if fresh else seconds)
        if not fresh:
            self._send()

    @property
    def output(self) -> IO[str]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout

    def read(self) -> Verdict | None:
        """What it says, once it has something to say; None: only that it is ready."""
        line = self.output.readline().strip()
        if line == "ready":
            self.deadline = time.monotonic() + self.late
            self._send()
            return None
        if line:
            return float(json.loads(line))
        self.kill()  # it has died of what it was asked
        return 0.0

    def _send(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which `read` finds
            self.process.stdin.write(json.dumps(self.question) + "\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Pool:
    def __init__(self, program: str, processes: int) -> None:
        self.judges = [Judge(program) for _ in range(processes)]

    def verdicts(self, questions: Sequence[Question], seconds: float) -> list[Verdict]:
        """One of each question, in order: its score, or TIMEOUT after `seconds`.

        Equal questions are asked once: samples of one problem often agree.
        """
        distinct = list(dict.fromkeys(questions))
        found: dict[int, Verdict] = {}
        waiting = iter(enumerate(distinct))
        busy: list[Judge] = []
        idle = list(self.judges)
        while len(found) < len(distinct):
            while idle and (following := next(waiting, None)) is not None:
                idle[-1].ask(*following, seconds)
                busy.append(idle.pop())
            for judge, verdict in _heard(busy):
                found[judge.number] = verdict
                busy.remove(judge)
                idle.append(judge)
        by_question = {question: found[number] for number, question in enumerate(distinct)}
        return [by_question[question] for question in questions]

    def close(self) -> None:
        for judge in self.judges:
            judge.kill()


def _heard(busy: list[Judge]) -> list[tuple[Judge, Verdict]]:
    """Waits until a judge says something or is late; a late one is killed."""
    said: list[tuple[Judge, Verdict]] = []
    with selectors.DefaultSelector() as selector:
        for judge in busy:
            selector.register(judge.output, selectors.EVENT_READ, judge)
        wait = max(0.0, min(judge.deadline for judge in busy) - time.monotonic())
        ready = [key.data for key, _ in selector.select(wait)]
    for judge in busy:
        if judge in ready:
            verdict = judge.read()
            if verdict is not None:
                said.append((judge, verdict))
        elif time.monotonic() >= judge.deadline:
            judge.kill()
            said.append((judge, TIMEOUT))
    return said


def verdicts(program: str, questions: Sequence[Question], seconds: float) -> list[Verdict]:
    """Of this process's own pool."""
    return _pool(program, min(PROCESSES, torch.get_num_threads())).verdicts(questions, seconds)


@cache
def _pool(program: str, processes: int) -> Pool:
    """Kept: starting one takes as long as a thousand judgements."""
    made = Pool(program, processes)
    atexit.register(made.close)
    return made
