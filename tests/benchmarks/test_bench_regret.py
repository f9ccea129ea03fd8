"""The regret benchmark: its problems and noise, its tables, and a short real run; no accuracy is judged."""

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import stdev
from types import ModuleType
from typing import Any

import pytest

from raysft import addition
from raysft.advisor import CANDIDATES

FOLDER = Path(__file__).parent
TASK = "number_sorting"


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import regret_cases

    return regret_cases


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import regret_table

    return regret_table


# --- problems ---------------------------------------------------------------------------------------------------------


def solved(task: str, prompt: str, equal: bool = True) -> str:
    """The answer by the prompt alone; equal: whether a number at the bound itself passes a filter."""
    *words, listed = prompt.removesuffix("?").split()
    if task == "spell_backward":
        return listed[::-1]
    numbers = [int(number) for number in listed.split(",")]
    if task == "number_sorting":
        numbers = sorted(numbers, reverse=words[0] == "down")
    else:
        bound = int(words[1])
        numbers = [n for n in numbers if (n == bound and equal) or (n > bound if words[0] == "above" else n < bound)]
    return ",".join(map(str, numbers))


@pytest.mark.parametrize("task", ["number_sorting", "number_filtering", "spell_backward"])
def test_a_problem_holds_what_its_answer_needs(cases: ModuleType, task: str) -> None:
    problems = cases.problems(task, 0)
    assert len(problems) > 4000
    assert all(answer in (solved(task, prompt), solved(task, prompt, equal=False)) for prompt, answer in problems)
    assert {c for problem in problems for text in problem for c in text} <= set(addition.CHARACTERS)
    assert problems != cases.problems(task, 1)


def test_a_slip_is_one_character_of_the_same_kind(cases: ModuleType) -> None:
    rng = random.Random(0)
    for answer in ("7", "12,5,33", "abc"):
        for _ in range(50):
            slipped = cases.with_slip(answer, rng)
            changed = [(a, b) for a, b in zip(answer, slipped, strict=True) if a != b]
            assert len(changed) == 1
            assert changed[0][0].isdigit() == changed[0][1].isdigit()


def test_the_cases_of_a_seed_come_before_those_of_the_next(cases: ModuleType) -> None:
    found = cases.cases(cases.NAMES, [0, 1])
    assert len(set(found)) == len(found) == 2 * (3 + 3 * 6)
    assert [case.seed for case in found] == sorted(case.seed for case in found)


# --- tables -----------------------------------------------------------------------------------------------------------


def study(tables: ModuleType, p: float, scores: dict[str, float], follow: float | None = None) -> Any:
    from raysft.capability import Capability

    capability = Capability(p, math.log(p), p, 100, 10, [i / 100 for i in range(101)], [5] * 20)
    trials = {
        o.label(): {
            "objective": o.model_dump(mode="json"),
            "accuracy": scores.get(o.label(), 0.1),
            "se": 0.01,
            "seconds": 4.0,
        }
        for o in CANDIDATES
    }
    return tables.Study(capability, 1.0, trials, {} if follow is None else {"auto": {"accuracy": follow}})


@pytest.fixture
def known(cases: ModuleType, tables: ModuleType) -> Any:
    """Two tasks; in both, .5 is best at p = .3, by .2 to .6 before all others, except that one task wants -log p."""
    return {
        cases.Case("a", True, "mid", 0): study(tables, 0.3, {"exponent 0.5": 0.7}),
        cases.Case("a", True, "mid", 1): study(tables, 0.3, {"exponent 0.5": 0.5}, follow=0.6),
        cases.Case("b", True, "mid", 0): study(tables, 0.3, {"exponent 0.5": 0.3, "nll": 0.4}),
    }


def test_regret_is_against_the_best_in_points(tables: ModuleType, known: Any) -> None:
    nll = tables.regrets(tables._always(tables.NLL), known)
    assert list(nll.values()) == pytest.approx([60, 40, 0])
    over_cases, over_seeds = tables.errors(nll)
    assert over_cases == pytest.approx(stdev([60, 40, 0]) / math.sqrt(3))
    assert over_seeds == pytest.approx(5), "seed 0 has 30, seed 1 has 40"
    assert list(tables.regrets(tables._auto_follow, known).values()) == pytest.approx([-10])


def test_no_case_is_advised_by_its_own_task(tables: ModuleType, known: Any) -> None:
    first, _, last = known
    assert {e.name for e in tables.evidence(known, without="a")} == {last.name()}
    assert tables.advised(last, known).exponent == 0.5, "as the other task wants, not as its own does"
    assert tables.advised(first, known).exponent < 0.5


def test_the_report_has_each_policy_and_each_case(tables: ModuleType, known: Any) -> None:
    text = tables.report(known)
    for name in [*tables.POLICIES, *(case.name() for case in known)]:
        assert f"| {name} |" in text


# --- a real run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def materials(cases: ModuleType, tiny_backbone: Path, tmp_path: Path) -> Path:
    """As the benchmark makes them, but with backbones that saw nothing."""
    own = tmp_path / "materials" / f"{TASK}-0"
    for level in cases.LEVELS:
        shutil.copytree(tiny_backbone, own / "backbones" / level)
    (own / "data").mkdir()
    rows = [json.dumps({"prompt": p, "response": r}) + "\n" for p, r in cases.problems(TASK, 0)[:40]]
    for name in ("heldout", "train-clean", "train-noisy"):
        (own / "data" / f"{name}.jsonl").write_text("".join(rows))
    (own / "done").touch()
    return own.parent


def test_a_run_may_be_continued_and_told(materials: Path, tmp_path: Path) -> None:
    results = tmp_path / "regret.jsonl"

    def bench(what: str) -> str:
        command = [sys.executable, str(FOLDER / "bench_regret.py"), what, "--results", str(results), "--steps", "1"]
        command += ["--folder", str(materials), "--tasks", TASK, "--seeds", "0", "--processes", "1"]
        settings = ["problems=4", "samples=1", "max_new_tokens=4"]
        sets = [word for setting in settings for word in ("--set", f"evaluation.generation.{setting}")]
        done = subprocess.run([*command, *sets], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bench("collect")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 6
    assert all(len(row["trials"]) == len(CANDIDATES) for row in rows)
    results.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    bench("collect")
    assert len(results.read_text().splitlines()) == 6, "only the missing case was measured"
    bench("follow")
    added = [json.loads(line) for line in results.read_text().splitlines()[6:]]
    assert len(added) == 6
    assert all(trial["objective"]["follow"] for row in added for trial in row["follow"].values())
    assert "| auto, following |" in bench("table")
