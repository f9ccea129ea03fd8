"""The demo's task: adding two two-digit numbers with a short worked solution, correct or noisy."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

Problem = tuple[int, int]

CHARACTERS = "0123456789+=?#, abcdefghijklmnopqrstuvwxyz\n"
END = "\n"
FILLERS = ("so ", "then ", "ok ", "now ", "hm ")
SLIPS, FILLED = 0.25, 0.1  # shares, of solutions and of sums, in the training data
SUMS = 2  # of units and of tens
LONGEST = 32  # characters of a solution with two of the longest fillers, its end included


@dataclass(frozen=True)
class Problems:
    """Disjoint parts of the 10,000 additions: the report's, those that a backbone is checked on, and all others."""

    heldout: list[Problem]
    validation: list[Problem]
    practice: list[Problem]


def draw_problems(seed: int, heldout: int, validation: int) -> Problems:
    every = [(a, b) for a in range(100) for b in range(100)]
    random.Random(f"problems {seed}").shuffle(every)
    rest = heldout + validation
    return Problems(every[:heldout], every[heldout:rest], every[rest:])


def prompt(problem: Problem) -> str:
    """`47+85?`"""
    return "{:02}+{:02}?".format(*problem)


def right_answer(problem: Problem) -> str:
    """`132`"""
    return f"{sum(problem):03}"


def given_answer(text: str) -> str:
    """What stands after the last #."""
    return text.rpartition("#")[2]


def solution(problem: Problem, rng: random.Random, slips: float = 0.0, filled: float = 0.0) -> str:
    """The sums of units and tens (digit + digit + carry), then the answer: `7+5+0=12,4+8+1=13#132`.

    slips: share of solutions in which one sum is wrong, and carried on into the answer; filled: share of sums that a
    filler word stands before.
    """
    slip = rng.randrange(SUMS) if rng.random() < slips else None
    sums, totals, carry = [], [], 0
    for place in range(SUMS):
        a, b = (number // 10**place % 10 for number in problem)
        total = a + b + carry
        if place == slip:
            total = rng.choice([other for other in range(20) if other != total])
        filler = rng.choice(FILLERS) if rng.random() < filled else ""
        sums.append(f"{filler}{a}+{b}+{carry}={total:02}")
        totals.append(total)
        carry = total // 10
    units, tens = totals
    return f"{','.join(sums)}#{tens * 10 + units % 10:03}"


def unrelated_text(rng: random.Random) -> str:
    """Three to seven random characters, written twice."""
    return 2 * "".join(rng.choices(CHARACTERS.removesuffix(END), k=rng.randint(3, 7)))


def write_data(folder: Path, problems: Problems, demonstrations: int, seed: int) -> None:
    """train.jsonl: so many noisy solutions of practice problems; heldout.jsonl: the held-out ones, solved correctly."""
    rng = random.Random(f"demonstrations {seed}")
    shown = rng.choices(problems.practice, k=demonstrations)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part, slips, filled in (("train", shown, SLIPS, FILLED), ("heldout", problems.heldout, 0.0, 0.0)):
        rows = [{"prompt": prompt(p), "response": solution(p, rng, slips, filled)} for p in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
