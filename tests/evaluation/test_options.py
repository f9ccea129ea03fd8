"""Which option a completion chooses, and by which rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import TaskConfig
from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation import build_scorer, check_references
from raysft.evaluation.options import chosen

OPTIONS = {"A": "Aspirin", "B": "Beta blocker", "C": "Beta blocker and aspirin", "D": "Rest"}
TASK = TaskConfig.model_validate(
    {"source": {"kind": "file", "path": "x.jsonl"}, "options": "options", "scorer": "options"}
)


def example(response: str, options: dict[str, str] | None = OPTIONS) -> Example:
    return Example([{"role": "assistant", "content": response}], "x.jsonl line 3", 2, options)


@pytest.mark.parametrize(
    ("text", "label", "how"),
    [
        (r"The answer is A. No: \boxed{B}", "B", "boxed"),
        (r"\boxed{\text{(C) Beta blocker and aspirin}}", "C", "boxed"),
        (r"\boxed{D.}", "D", "boxed"),
        (r"\boxed{rest}", "D", "boxed"),
        (r"\boxed{Aspirin}", "A", "boxed"),
        (r"\boxed{42}. The answer is D", "D", "answer is"),
        ("The answer is A, as B is wrong. Thus the answer is (C).", "C", "answer is"),
        ("Answer: **B**", "B", "answer is"),
        ("The answer is Aspirin", "A", "text"),
        ("A fever is treated. I take (D)", "D", "label"),
        ("A patient with a fever: B", "B", "label"),
        ("A fever needs rest, not aspirin", "A", "text"),
        ("Give a beta blocker and aspirin", "C", "text"),
        ("resting", "D", "text"),
        ("Asprin tablets", "A", "closest"),
        ("Don't", "D", "closest"),  # its D is part of a word
        ("", None, ""),
        (" \n", None, ""),
    ],
)
def test_the_first_rule_that_finds_one_decides(text: str, label: str | None, how: str) -> None:
    assert chosen(text, OPTIONS) == (label, how)


def test_the_score_is_whether_the_right_one_was_chosen() -> None:
    scorer = build_scorer(TASK, TASK.source)
    scored = scorer.score(r"\boxed{B}", example("B"))
    assert (scored.score, scored.answer, scored.how) == (1.0, "B", "boxed")
    assert scorer.score(r"\boxed{B}", example("A")).score == 0
    assert scorer.score("", example("A")).score == 0


def test_problems_without_their_answer_among_the_options_are_refused() -> None:
    scorer = build_scorer(TASK, TASK.source)
    with pytest.raises(InputError, match="the answer 'E' is none of its options") as error:
        check_references(scorer, [example("A"), example("E")])
    assert error.value.place == "x.jsonl line 3"
    with pytest.raises(InputError, match="has no options"):
        check_references(scorer, [example("A", None)])


@given(st.text(), st.dictionaries(st.sampled_from("ABCDEFGH"), st.text(), min_size=2))
def test_no_completion_makes_it_raise_and_only_options_are_chosen(text: str, options: dict[str, str]) -> None:
    label, how = chosen(text, options)
    assert label is None if not text.strip() else label in options
    assert how in ("", "boxed", "answer is", "label", "text", "closest")


@given(st.sampled_from("ABCD"), st.sampled_from(["the answer is {}", "Answer: {}.", r"\boxed{{{}}}", "({})", "{}"]))
def test_a_label_is_found_however_it_is_given(label: str, form: str) -> None:
    assert chosen(form.format(label), OPTIONS)[0] == label
