"""What counts as the same value, which answer is taken, and that no comparison holds an evaluation up."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft.config import FileSource, GenerationConfig
from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation import Scorer, build_scorer, check_references
from raysft.evaluation.boxed import last_boxed
from raysft.evaluation.pool import Pool
from raysft.mathjudge import judge

FILE = FileSource(path="x.jsonl")  # type: ignore[arg-type]
TOWER = "9^{9^{9^{9}}}"  # sympy never ends with it

# Hand-made answers at the edges of notation; tests/benchmarks/compare_math.py asks other rules about them too.
CASES = [json.loads(line) for line in Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()]


def scorer(**settings: Any) -> Scorer:
    return build_scorer(GenerationConfig(scorer="math", **settings), FILE)


def example(response: str) -> Example:
    return Example([{"role": "user", "content": "?"}, {"role": "assistant", "content": response}], "x.jsonl line 3", 2)


def test_hand_made_cases() -> None:
    scored = scorer().score_all([c["completion"] for c in CASES], [example(c["reference"]) for c in CASES])
    wrong = [c | {"answer": s.answer} for c, s in zip(CASES, scored, strict=True) if (s.score == 1) is not c["right"]]
    assert wrong == []


def test_a_tolerance_is_for_decimal_numbers_alone() -> None:
    assert not judge("1.6", "1.60001")
    assert judge("20000.0", "20001", tolerance=1e-4)
    assert not judge("20000", "20001", tolerance=1e-4)
    assert not judge("1.6", "x", tolerance=1e-4)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{\frac{1}{", "3"),
        (r"$\boxed{\left\{1,2\right\}}$", r"\left\{1,2\right\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed 5$ is", "5"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{}", None),
        ("no box", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@given(st.recursive(st.text("ab1+ ", min_size=1), lambda inner: inner.map(lambda t: "{" + t + "}") | inner.map(
    lambda t: t + r"\{" + t)))  # fmt: skip
def test_a_box_gives_back_what_was_put_into_it(content: str) -> None:
    expected = content.strip() or None
    assert last_boxed(f"first \\boxed{{0}}, then $\\boxed{{{content}}}$.") == (expected or "0")


@pytest.mark.parametrize(
    ("completion", "answer", "how"),
    [
        (r"The answer is 3, so \boxed{4}", "4", "boxed"),
        ("The answer is $\\frac{1}{2}$ because 3", r"\frac{1}{2}", "pattern"),
        ("So the final answer is: 1,234. I hope 5 helps", "1,234", "pattern"),
        ("Answer: -3/4", "-3/4", "pattern"),
        ("The answer is Evelyn.", "Evelyn", "pattern"),
        ("So the final answer is:\n\n$$\nx = 2\n$$\nSo 5", "x = 2", "pattern"),
        (r"the answer is: \[ 7 \]", "7", "pattern"),
        ("So the answer is 40 + 70 = 90 daps.", "40 + 70 = 90 daps", "pattern"),
        ("first 7-3, then 1,200.50 dollars.", "1,200.50", "pattern"),
        ("x = -3", "-3", "pattern"),
        ("nothing", None, ""),
    ],
)
def test_what_is_taken_for_the_answer(completion: str, answer: str | None, how: str) -> None:
    scored = scorer().score(completion, example("1"))
    assert (scored.answer, scored.how) == (answer, how)


def test_patterns_of_ones_own_come_after_the_box_and_replace_the_others() -> None:
    own = scorer(answer_pattern=[r"@(\d+)", r"#(\d+)"])
    assert own.score("#5 @4", example("4")).score == 1
    assert own.score("#5", example("5")).score == 1
    assert own.score(r"\boxed{6} @4", example("6")).score == 1
    assert own.score("The answer is 5", example("5")).answer is None
    assert scorer(answer_pattern=[]).score("The answer is 5", example("5")).answer is None


def test_a_reference_may_be_a_solution_with_a_box() -> None:
    assert scorer().score(r"\boxed{0.5}", example(r"It is \boxed{\frac{1}{2}}.")).score == 1
    with pytest.raises(InputError, match="no reference to compare with") as error:
        check_references(scorer(), [example("$ $")])
    assert error.value.place == "x.jsonl line 3"


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool("raysft.mathjudge", 2)
    yield made
    made.close()


def test_a_comparison_that_hangs_is_killed_and_the_others_go_on(pool: Pool) -> None:
    questions = [("1/2", "0.5", 0.0), ("3", TOWER, 0.0), ("3", "4", 0.0), ("1/2", "0.5", 0.0), ("2", "4/2", 0.0)]
    begun = time.monotonic()
    assert pool.verdicts(questions, 3.0) == [True, "timeout", False, True, True]
    assert pool.verdicts([("3", TOWER, 0.0), ("2", "4/2", 0.0)], 1.0) == ["timeout", True]
    assert time.monotonic() - begun < 120


def test_comparisons_work_in_a_thread_that_is_not_the_main_one(pool: Pool) -> None:
    """Where math-verify's own timeouts, which are signals, raise an error: Ray runs actors so."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(pool.verdicts([("1/2", "0.5", 0.0)], 60.0)))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.usefixtures("ray_cluster")
def test_comparisons_work_in_a_ray_worker() -> None:
    import ray

    @ray.remote(num_cpus=1)
    def ask() -> list[Any]:
        made = Pool("raysft.mathjudge", 1)
        found = made.verdicts([("1/2", "0.5", 0.0), ("3", TOWER, 0.0), ("2", "4/2", 0.0)], 10.0)
        made.close()
        return found

    assert ray.get(ask.remote()) == [True, "timeout", True]


def test_a_process_that_dies_costs_its_question_alone(pool: Pool) -> None:
    assert pool.verdicts([("1/2", "0.5", 0.0)], 60.0) == [True]
    for asked in pool.judges:
        if asked.process is not None:
            asked.process.kill()
            asked.process.wait()
    assert pool.verdicts([("2", "4/2", 0.0)], 60.0) == [False]
    assert pool.verdicts([("2", "4/2", 0.0)], 60.0) == [True]


def test_a_late_comparison_marks_its_sample() -> None:
    scored = scorer(timeout=1.0).score_all([rf"\boxed{{{TOWER}}}", r"\boxed{3}"], [example("3")] * 2)
    assert [(s.score, s.how) for s in scored] == [(0.0, "timeout"), (1.0, "boxed")]
    assert scored[0].answer == TOWER


@settings(max_examples=40)
@given(st.text("\\{}$frac123x=,.%^_()[] boxed", max_size=40))
def test_no_completion_makes_it_raise(text: str) -> None:
    assert scorer(timeout=20.0).score(text, example("1")).score in (0, 1)
