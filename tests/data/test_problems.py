"""The problems of a task: which rows, what the model is told, which answer counts."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import TaskConfig
from raysft.data.problems import last_match, part_of, spread, task_examples
from raysft.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"question": "1+1?", "answer": "so\n#### 2", "level": 1, "set": {"name": "a"}},
    {"question": "2+2?", "answer": "so\n#### 4", "level": 2, "set": {"name": "b"}},
    {"question": "3+3?", "answer": 6.0, "level": 1, "set": {"name": "a"}},
]
Make = Callable[..., TaskConfig]


@pytest.fixture
def task(tmp_path: Path) -> Make:
    def make(rows: Any = ROWS, name: str = "rows.jsonl", **changes: Any) -> TaskConfig:
        path = tmp_path / name
        path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows))
        source = {"kind": "file", "path": str(path)} | changes.pop("source", {})
        return TaskConfig.model_validate({"source": source, **changes})

    return make


def test_instruction_system_and_answer(task: Make) -> None:
    config = task(instruction="Q: {prompt}\n\\boxed{}", system="Be brief.", response_pattern=r"#### (\d+)", problems=2)
    examples = task_examples("t", config)
    assert [m["content"] for m in examples[0].messages] == ["Be brief.", "Q: 1+1?\n\\boxed{}", "2"]
    assert [m["role"] for m in examples[0].messages] == ["system", "user", "assistant"]
    assert [example.index for example in examples] == [0, 1]
    assert examples[1].origin.endswith("rows.jsonl line 2")


def test_rows_are_picked_by_their_fields(task: Make) -> None:
    assert [e.index for e in task_examples("t", task(where={"level": 1}))] == [0, 2]
    assert [e.index for e in task_examples("t", task(where={"set.name": "b", "level": 2}))] == [1]
    with pytest.raises(InputError, match="no row has level 7") as error:
        task_examples("t", task(where={"level": 7}))
    assert error.value.fix == "Change evaluation.tasks.t.where."


def test_rows_may_lie_under_a_key(task: Make) -> None:
    config = task({"first": ROWS[:1], "second": ROWS[1:]}, "all.json", source={"key": "second"})
    examples = task_examples("t", config)
    assert [example.messages[0]["content"] for example in examples] == ["2+2?", "3+3?"]
    assert examples[0].origin.endswith("all.json second item 0")
    with pytest.raises(InputError, match="has no key 'secnd'") as error:
        task_examples("t", task({"second": ROWS}, "all.json", source={"key": "secnd"}))
    assert error.value.fix == "Did you mean 'second'?"


@pytest.mark.parametrize(
    ("options", "answer", "label", "told"),
    [
        ({"A": "yes", "B": "no", "C": None}, "B", "B", "A. yes\nB. no"),
        ({"A": "yes", "B": "no"}, "no", "B", "A. yes\nB. no"),
        (["yes", "no"], 1, "B", "A. yes\nB. no"),
        (["yes", "no"], "B", "B", "A. yes\nB. no"),
        ([3, 4], "4", "B", "A. 3\nB. 4"),
        ([3, 4], 4, "B", "A. 3\nB. 4"),
        ([1, 0], 0, "A", "A. 1\nB. 0"),
    ],
)
def test_options_and_the_label_of_the_right_one(task: Make, options: Any, answer: Any, label: str, told: str) -> None:
    rows = [{"question": "q?", "answer": answer, "options": options}]
    (example,) = task_examples("t", task(rows, options="options", instruction="{prompt}\n{options}"))
    assert example.response == label
    assert example.messages[0]["content"] == f"q?\n{told}"
    assert list((example.options or {}).values()) == told.replace("A. ", "").replace("B. ", "").split("\n")


def test_options_that_have_a_field_each(task: Make) -> None:
    """As in MMLU-ProX; rows with fewer options have null in the last fields."""
    rows = [{"question": "q?", "answer": "B", "o0": "yes", "o1": "no", "o2": None}]
    fields = ["o0", "o1", "o2"]
    (example,) = task_examples("t", task(rows, options=fields, instruction="{prompt}\n{options}"))
    assert example.options == {"A": "yes", "B": "no"}
    assert example.messages[0]["content"] == "q?\nA. yes\nB. no"
    assert example.response == "B"


@pytest.mark.parametrize(
    ("row", "changes", "message", "fix"),
    [
        ({"question": "1", "answer": "A", "o": "x"}, {"options": ["o", "p"]}, "field 'p' is missing", "options"),
        ({"question": "1", "answer": "A", "o": "x", "p": None}, {"options": ["o", "p"]}, "'o, p' has 1 options", "Rem"),
        ({"qestion": "1", "answer": "2"}, {}, "field 'question' is missing", "evaluation.tasks.t.prompt"),
        ({"question": "1", "answer": " "}, {}, "the answer .* is empty", "Remove"),
        ({"question": "1", "answer": None}, {}, "field 'answer' is not text but null", "Name a field"),
        ({"question": "1", "answer": "2"}, {"response_pattern": "#(.)"}, "no match of response_pattern '#", "Change"),
        ({"question": "1", "answer": "A", "o": ["x"]}, {"options": "o"}, "has 1 options; two are needed", "Remove"),
        ({"question": "1", "answer": "A", "o": "x"}, {"options": "o"}, "holds no options", "Name a list"),
        ({"question": "1", "answer": "C", "o": ["x", "y"]}, {"options": "o"}, "'C' .* none of its options", "Valid"),
        ({"question": "1", "answer": 2, "o": ["x", "y"]}, {"options": "o"}, "'2' .* none of its options", "Valid"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    task: Make, row: dict[str, Any], changes: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        task_examples("t", task([row], **changes))
    assert error.value.place.endswith("rows.jsonl line 1")
    assert fix in error.value.fix


def test_reasoning_gym_tasks_need_no_field_names() -> None:
    source = {"kind": "reasoning_gym", "task": "chain_sum", "size": 3}
    config = TaskConfig.model_validate({"source": source, "scorer": "reasoning_gym"})
    assert [example.index for example in task_examples("t", config)] == [0, 1, 2]


@given(st.integers(1, 500), st.none() | st.integers(1, 600))
def test_problems_are_spread_evenly(total: int, count: int | None) -> None:
    chosen = spread(total, count)
    assert len(chosen) == min(total, count or total)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    gaps = {b - a for a, b in pairwise(chosen)}
    assert len(gaps) <= 2


def test_the_last_match_that_is_not_empty() -> None:
    import re

    assert last_match(re.compile(r"#(\d*)"), "#1 #2 #") == "2"
    assert last_match(re.compile(r"\d"), "none") is None


@given(st.sets(st.integers(0, 10_000)), st.sets(st.integers(0, 10_000)), st.floats(0.01, 0.99))
def test_each_problem_has_its_part_whatever_else_is_asked(some: set[int], others: set[int], share: float) -> None:
    report = part_of(sorted(some), "report", share)
    search = part_of(sorted(some), "search", share)
    assert sorted(report + search) == sorted(some)
    assert set(report) == some & set(part_of(sorted(some | others), "report", share))
    assert part_of(sorted(some), "all", share) == sorted(some)


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_a_part_is_about_its_share_at_any_stride(stride: int) -> None:
    kept = part_of(range(0, 2000 * stride, stride), "report", 0.3)
    assert len(kept) == pytest.approx(600, abs=60)
