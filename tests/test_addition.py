"""The demo's task: arithmetic, slips, fillers and files."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft import addition
from raysft.addition import (
    CHARACTERS,
    FILLERS,
    LONGEST,
    draw_problems,
    given_answer,
    prompt,
    right_answer,
    solution,
    unrelated_text,
    write_data,
)

PROBLEMS = st.tuples(st.integers(0, 99), st.integers(0, 99))
SEEDS = st.integers(0, 2**32)
SUM = re.compile(r"(\d)\+(\d)\+(\d)=(\d\d)")


def steps(text: str) -> list[tuple[int, int, int, int]]:
    """(digit, digit, carry, total) of each sum that a solution writes."""
    return [tuple(map(int, found)) for found in SUM.findall(text)]  # type: ignore[misc]


def wrong_sums(text: str) -> int:
    return sum(a + b + carry != total for a, b, carry, total in steps(text))


def test_every_solution_is_right() -> None:
    rng = random.Random(0)
    for a in range(100):
        for b in range(100):
            text = solution((a, b), rng)
            assert given_answer(text) == right_answer((a, b)) == f"{a + b:03}"
            assert wrong_sums(text) == 0
            assert [step[:2] for step in steps(text)] == [(a % 10, b % 10), (a // 10, b // 10)]


def test_an_example_reads_as_documented() -> None:
    assert prompt((47, 85)) == "47+85?"
    assert prompt((3, 0)) == "03+00?"
    assert solution((47, 85), random.Random(0)) == "7+5+0=12,4+8+1=13#132"


@given(PROBLEMS, SEEDS)
def test_a_slip_is_one_wrong_sum_that_is_carried_on(problem: addition.Problem, seed: int) -> None:
    text = solution(problem, random.Random(seed), slips=1.0)
    assert wrong_sums(text) == 1
    for (_, _, _, total), (_, _, carry, _) in pairwise(steps(text)):
        assert carry == total // 10
    units, tens = (total for *_, total in steps(text))
    assert given_answer(text) == f"{10 * tens + units % 10:03}"


@given(PROBLEMS, SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_every_solution_fits_and_is_written_in_known_characters(
    problem: addition.Problem, seed: int, slips: float, filled: float
) -> None:
    text = solution(problem, random.Random(seed), slips, filled)
    assert len(text + addition.END) <= LONGEST
    assert set(prompt(problem) + text + addition.END) <= set(CHARACTERS)


def test_the_longest_solution_is_reached() -> None:
    rng = random.Random(0)
    texts = [solution((9, 99), rng, filled=1.0) for _ in range(1000)]
    assert max(len(text + addition.END) for text in texts) == LONGEST


@given(PROBLEMS, SEEDS)
def test_fillers_change_nothing_but_words(problem: addition.Problem, seed: int) -> None:
    text = solution(problem, random.Random(seed), filled=1.0)
    assert steps(text) == steps(solution(problem, random.Random(0)))
    assert all(part.startswith(FILLERS) for part in text.split(","))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_shares_of_slips_and_fillers(share: float) -> None:
    rng = random.Random(0)
    texts = [solution((rng.randrange(100), rng.randrange(100)), rng, slips=share, filled=share) for _ in range(4000)]
    slipped = sum(wrong_sums(text) for text in texts) / len(texts)
    filled = sum(part.startswith(FILLERS) for text in texts for part in text.split(",")) / (2 * len(texts))
    assert slipped == pytest.approx(share, abs=0.03)
    assert filled == pytest.approx(share, abs=0.03)


@settings(max_examples=20)
@given(SEEDS, st.integers(0, 500), st.integers(0, 500))
def test_problems_are_disjoint_and_drawn_by_the_seed(seed: int, heldout: int, validation: int) -> None:
    problems = draw_problems(seed, heldout, validation)
    assert (len(problems.heldout), len(problems.validation)) == (heldout, validation)
    every = problems.heldout + problems.validation + problems.practice
    assert sorted(every) == [(a, b) for a in range(100) for b in range(100)]
    assert problems == draw_problems(seed, heldout, validation)
    assert problems.practice != draw_problems(seed + 1, heldout, validation).practice


@given(SEEDS)
def test_unrelated_text_is_a_string_twice(seed: int) -> None:
    text = unrelated_text(random.Random(seed))
    half = len(text) // 2
    assert text[:half] == text[half:]
    assert 3 <= half <= 7
    assert set(text) <= set(CHARACTERS) - {addition.END}


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_files_are_functions_of_the_seed(tmp_path: Path) -> None:
    problems = draw_problems(0, 20, 20)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_data(tmp_path / name, problems, 300, seed)
    for file in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "train.jsonl").read_bytes() != (tmp_path / "c" / "train.jsonl").read_bytes()


def test_training_data_is_noisy_and_heldout_data_is_not(tmp_path: Path) -> None:
    problems = draw_problems(3, 200, 50)
    write_data(tmp_path, problems, 3000, 3)
    train, heldout = rows(tmp_path / "train.jsonl"), rows(tmp_path / "heldout.jsonl")
    assert len(train) == 3000
    assert {row["prompt"] for row in train} <= {prompt(p) for p in problems.practice}
    slipped = [wrong_sums(row["response"]) for row in train]
    assert sum(slipped) / len(slipped) == pytest.approx(addition.SLIPS, abs=0.03)
    assert [row["prompt"] for row in heldout] == [prompt(p) for p in problems.heldout]
    assert [given_answer(row["response"]) for row in heldout] == [right_answer(p) for p in problems.heldout]
    assert not any(filler in row["response"] for row in heldout for filler in FILLERS)
