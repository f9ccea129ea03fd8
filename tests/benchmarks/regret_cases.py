"""What the regret of an advice is measured on: tasks, each with backbones that saw more or less of it.

`addition` is the demo's. The others are problems of reasoning-gym, written with the demo's characters; their backbones
are the demo's model after unrelated text and so many steps on clean solutions, and their training data are clean, or a
quarter of the solutions have one wrong character.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import reasoning_gym
from filelock import FileLock

from raysft import addition
from raysft.config import SweepConfig
from raysft.demo import RECIPE, SHIPPED, Pretraining, character_tokenizer, make_demo, new_model
from raysft.sweepfile import load

Problem = tuple[str, str]  # prompt, response

LEVELS = {"weak": 0, "early": 100, "mid": 400, "strong": 1200}  # steps on clean solutions before the SFT
CLEAN = ("strong", "mid")  # levels at which the clean data are tried as well
ORDER = ("strong", "weak", "mid", "early")
LONGER = 2  # times the steps for weak backbones, which have learned nothing that can be told apart before
POOL, HELDOUT, DEMONSTRATIONS = 6000, 200, 3200
SLIPS = 0.25  # share of noisy solutions with one wrong character


@dataclass(frozen=True)
class Case:
    """One study: a task's data, clean or noisy, and a backbone of some level; the seed is that of all of it."""

    task: str
    noisy: bool
    level: str
    seed: int

    def name(self) -> str:
        return f"{self.task}-{'noisy' if self.noisy else 'clean'}-{self.level}-{self.seed}"


def cases(tasks: list[str], seeds: list[int]) -> list[Case]:
    """Seed by seed, so that a run that is ended early has all cases of the first seeds; tasks in turn, because two
    cases of one task at once would wait for the same materials.
    """
    every = [
        Case(task, noisy, level, seed) for seed in seeds for noisy in (True, False) for level in ORDER for task in tasks
    ]
    return [case for case in every if _is_tried(case)]


def _is_tried(case: Case) -> bool:
    if case.task == "addition":  # the demo has no backbone `early` and no clean data
        return case.noisy and case.level != "early"
    return case.noisy or case.level in CLEAN


def config_of(case: Case, folder: Path, steps: int, sets: list[str]) -> SweepConfig:
    """The demo's settings over the case's materials, which are made where they are missing; one study's config."""
    own = folder / f"{case.task}-{case.seed}"
    paths = {"backbone": own / "backbones" / case.level, "heldout": own / "data" / "heldout.jsonl"}
    own.mkdir(parents=True, exist_ok=True)
    with FileLock(own / ".lock"):  # two cases at once may want the same ones
        if case.task == "addition":
            make_demo(own, case.seed, log=lambda text: None)
        else:
            _make(own, case.task, case.seed)
    if case.task == "addition":
        paths["train"] = own / "data" / "train.jsonl"
        extra: list[str] = []
    else:
        paths["train"] = own / "data" / f"train-{'noisy' if case.noisy else 'clean'}.jsonl"
        extra = ["evaluation.generation.answer_pattern=null", f"evaluation.generation.problems={HELDOUT}"]
    values = {
        "backbones": json.dumps([{"name": case.level, "path": str(paths["backbone"])}]),
        "data.train.path": json.dumps(str(paths["train"])),
        "data.heldout.path": json.dumps(str(paths["heldout"])),
        "name": case.name(),
        "output": json.dumps(str(folder / "runs")),
        "seed": str(case.seed),
        "training.steps": str(steps * LONGER if case.level == "weak" else steps),
        "export": "none",
    }
    config = load(SHIPPED, [*(f"{key}={value}" for key, value in values.items()), *extra, *sets])
    return config.for_backbone(case.level)


# --- the tasks of reasoning-gym -------------------------------------------------------------------------------------


def _numbers(text: str) -> list[str]:
    return [number.removesuffix(".0") for number in re.findall(r"\d+(?:\.0)?", text)]


def _sorting(question: str, answer: str) -> Problem:
    direction = "up" if "ascending" in question else "down"
    listed = question.partition(":")[2].partition("\n")[0]  # the rest shows how to answer
    return f"{direction} {','.join(_numbers(listed))}?", ",".join(_numbers(answer))


def _filtering(question: str, answer: str) -> Problem:
    """What is at the bound itself may stay or not: the prompt does not say so, which is a little more noise."""
    found = re.search(r"(Keep all|Remove all) numbers (larger|smaller) than (\d+)", question)
    assert found is not None
    keeps_larger = (found[1] == "Keep all") == (found[2] == "larger")
    listed = question.partition("[")[2].partition("]")[0]
    side = "above" if keeps_larger else "below"
    return f"{side} {found[3]} {','.join(_numbers(listed))}?", ",".join(_numbers(answer))


def _spelling(question: str, answer: str) -> Problem:
    return f"{question.rpartition(':')[2].strip().lower()}?", answer.lower()


NUMBERS = {"min_value": 0, "max_value": 99, "min_decimals": 0, "max_decimals": 0}
TASKS: dict[str, tuple[dict[str, Any], Callable[[str, str], Problem]]] = {
    "number_sorting": ({"min_numbers": 2, "max_numbers": 3, **NUMBERS}, _sorting),
    "number_filtering": ({"min_numbers": 3, "max_numbers": 5, **NUMBERS}, _filtering),
    "spell_backward": ({"min_word_len": 3, "max_word_len": 5}, _spelling),
}
NAMES = ["addition", *TASKS]


@cache
def problems(task: str, seed: int) -> list[Problem]:
    """Different ones, in a random order; those without an answer are left out."""
    params, written = TASKS[task]
    made = reasoning_gym.create_dataset(task, size=POOL, seed=1000 + seed, **params)
    found = dict(written(entry["question"], entry["answer"]) for entry in made)
    return [problem for problem in found.items() if problem[1]]


def with_slip(answer: str, rng: random.Random) -> str:
    """One letter or digit replaced by another of its kind."""
    at = rng.choice([i for i, character in enumerate(answer) if character.isalnum()])
    kind = "0123456789" if answer[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    return answer[:at] + rng.choice(kind.replace(answer[at], "")) + answer[at + 1 :]


def _make(folder: Path, task: str, seed: int) -> None:
    """data/ and backbones/ of a task."""
    done = folder / "done"
    if done.exists():
        return
    every = problems(task, seed)
    heldout, practice = every[:HELDOUT], every[HELDOUT:]
    rng = random.Random(f"demonstrations {task} {seed}")
    shown = rng.choices(practice, k=DEMONSTRATIONS)
    noisy = [(prompt, with_slip(a, rng) if rng.random() < SLIPS else a) for prompt, a in shown]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, part in (("heldout", heldout), ("train-clean", shown), ("train-noisy", noisy)):
        lines = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in part]
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines))
    tokenizer = character_tokenizer()
    training = Pretraining(new_model(tokenizer, seed), tokenizer, random.Random(f"pretraining {seed}"), RECIPE)

    def mostly_solutions(rng: random.Random) -> str:
        return addition.unrelated_text(rng) if rng.random() < RECIPE.text_share else "".join(rng.choice(practice))

    training.run(RECIPE.weak_steps, addition.unrelated_text)
    before = 0
    for level, steps in LEVELS.items():
        training.run(steps - before, mostly_solutions)
        before = steps
        training.averaged.save_pretrained(folder / "backbones" / level)
        tokenizer.save_pretrained(folder / "backbones" / level)
    done.touch()
