"""What counts as right, and which references are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import DataConfig, FileSource, GenerationConfig, ReasoningGymSource
from raysft.data.sources import Example, load_examples
from raysft.errors import InputError
from raysft.evaluation import ReasoningGym, Scorer, build_scorer, check_references
from raysft.evaluation.numeric import last_number, value

FILE = FileSource(path="x.jsonl")  # type: ignore[arg-type]


def scorer(name: str = "exact_match", pattern: str | None = None) -> Scorer:
    return build_scorer(GenerationConfig(scorer=name, answer_pattern=pattern), FILE)  # type: ignore[arg-type]


def example(response: str) -> Example:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": response}]
    return Example(messages, "x.jsonl line 3", 2)


@pytest.mark.parametrize(
    ("pattern", "completion", "reference", "score", "answer"),
    [
        (None, " blue\n", "blue", 1, "blue"),
        (None, "Blue", "blue", 0, "Blue"),
        (r"#(\d+)", "1+1=3#3 no #2", "so#2", 1, "2"),
        (r"#(\d+)", "2", "so#2", 0, None),
        (r"#(\d*)", "#2 #", "#2", 1, "2"),
        (r"\d+", "4 or 2", "2", 1, "2"),
        (r"a(x)?b(y)?", "abyab", "ab", 1, "ab"),
    ],
)
def test_exact_match(pattern: str | None, completion: str, reference: str, score: float, answer: str | None) -> None:
    scored = scorer(pattern=pattern).score(completion, example(reference))
    assert (scored.score, scored.answer) == (score, answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,234.0.", "1234"),
        ("$5", "5"),
        ("-$5.50", "-5.5"),
        ("$-5", "-5"),
        ("50%", "50"),
        ("3 - 1 = 2", "2"),
        ("7-3", "3"),
        ("x = -3", "-3"),
        ("1e3", "1000"),
        (".5", "0.5"),
        ("12,34", "34"),
        ("−4", "-4"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    found = last_number(text)
    assert found is not None
    assert value(found) == value(number)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "so {} apples", "#### {:,}.00", "{}%"]))
def test_numbers_are_equal_however_they_are_written(number: int, form: str) -> None:
    written = form.format(number).replace("$-", "-$")
    assert scorer("numeric").score(written, example(f"#### {number}")).score == 1
    assert scorer("numeric").score(written, example(f"#### {number + 1}")).score == 0


@given(st.text())
def test_no_completion_makes_a_scorer_raise(text: str) -> None:
    for name, pattern in (("numeric", None), ("numeric", "#(.*)"), ("exact_match", "#(.*)"), ("exact_match", None)):
        assert scorer(name, pattern).score(text, example("#1")).score in (0, 1)


def test_references_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(InputError, match="has no match of answer_pattern") as error:
        check_references(scorer(pattern=r"#(\d+)"), [example("#1"), example("none")])
    assert error.value.place == "x.jsonl line 3"
    with pytest.raises(InputError, match="holds no number"):
        check_references(scorer("numeric"), [example("none")])
    with pytest.raises(InputError, match="is not of a reasoning-gym task"):
        check_references(scorer("reasoning_gym"), [example("none")])


def test_reasoning_gym_scores_as_the_task_does() -> None:
    source = ReasoningGymSource(task="chain_sum", size=5, seed=1)
    import reasoning_gym

    task = reasoning_gym.create_dataset("chain_sum", size=5, seed=1)
    examples = [Example([{"role": "user", "content": e["question"]}, {"role": "assistant", "content": e["answer"]}],
                        f"chain_sum item {i}", i) for i, e in enumerate(task)]  # fmt: skip
    judge = build_scorer(GenerationConfig(scorer="reasoning_gym"), source)
    assert isinstance(judge, ReasoningGym)
    check_references(judge, examples)
    for i, problem in enumerate(examples):
        assert judge.score(problem.response, problem).score == 1
        for completion in ("", "x", problem.response + "1", f"it is {problem.response}"):
            assert judge.score(completion, problem).score == task.score_answer(completion.strip(), task[i])
    wrong = Example([*examples[0].messages[:1], {"role": "assistant", "content": "no"}], "chain_sum item 0", 0)
    with pytest.raises(InputError, match="generates another answer"):
        check_references(judge, [wrong])


def test_reasoning_gyms_own_data_can_be_scored() -> None:
    source = ReasoningGymSource(task="figlet_font", size=3, params={"min_word_len": 2, "max_word_len": 3})
    examples = load_examples(source, DataConfig(train=source, template="plain"), None, 0)[0]
    check_references(build_scorer(GenerationConfig(scorer="reasoning_gym"), source), examples)


def test_an_answer_that_hangs_a_reasoning_gym_task_times_out_and_the_others_go_on() -> None:
    """countdown computes what a model writes."""
    source = ReasoningGymSource(task="countdown", size=2, seed=1)
    first, second = load_examples(source, DataConfig(train=source, template="plain"), None, 0)[0]
    judge = build_scorer(GenerationConfig(scorer="reasoning_gym", timeout=3), source)
    found = judge.score_all(["9**9**9**9", first.response, second.response], [first, first, second])
    assert [(scored.score, scored.how) for scored in found] == [(0.0, "timeout"), (1.0, ""), (1.0, "")]
