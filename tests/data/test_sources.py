from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import DataConfig, FileSource, ReasoningGymSource
from raysft.data.sources import draw, load_examples
from raysft.errors import InputError

Jsonl = Callable[..., DataConfig]
PAIR = {"prompt": "p", "response": "r"}
GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "test.jsonl"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_prompt_and_response_become_messages(jsonl: Jsonl) -> None:
    data = jsonl({"q": "one", "a": "two", "other": None}, {"q": 3, "a": 4.5}, prompt="q", response="a")
    first, second = load_examples(data.train, data)[0]
    assert first.messages == [user("one"), assistant("two")]
    assert (first.response, first.prompt_messages, first.index) == ("two", [user("one")], 0)
    assert first.origin == f"{data.train.path} line 1"
    assert second.messages == [user("3"), assistant("4.5")]
    huge = jsonl({"prompt": 10**400, "response": -1})  # no float
    assert load_examples(huge.train, huge)[0][0].messages == [user("1" + "0" * 400), assistant("-1")]
    assert second.index == 1


def test_system_and_suffix_are_added_where_they_belong(jsonl: Jsonl) -> None:
    own = [{"role": "system", "content": "own"}, user("a"), assistant("b"), user("c"), assistant("d")]
    data = jsonl({"m": own}, {"m": own[1:3]}, messages="m", system="given", prompt_suffix="!")
    first, second = load_examples(data.train, data)[0]
    assert [m["content"] for m in first.messages] == ["own", "a!", "b", "c!", "d"]
    assert [m["content"] for m in second.messages] == ["given", "a!", "b"]
    assert second.messages[0]["role"] == "system"


def test_extra_keys_of_messages_are_left_out(jsonl: Jsonl) -> None:
    data = jsonl({"m": [user("a") | {"id": 1}, assistant(7)]}, messages="m")
    assert load_examples(data.train, data)[0][0].messages == [user("a"), assistant("7")]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "p", "respones": "r"}, {}, r"'response' is missing\. Did you mean 'respones'\? .* data\.response"),
        ({}, {}, r"'prompt' is missing\. The sample has no fields"),
        (PAIR | {"prompt": None}, {}, "field 'prompt' is not text but null"),
        (PAIR | {"prompt": True}, {}, "field 'prompt' is not text but of type bool"),
        (PAIR | {"response": ["r"]}, {}, "field 'response' is not text but of type list"),
        ('{"prompt": "p", "response": NaN}', {}, "field 'response' is not text but the number nan"),
        ('{"prompt": "\\ud800", "response": "r"}', {}, "field 'prompt' is not valid Unicode"),
        (PAIR | {"response": " \n"}, {}, r"the response \(field 'response'\) is empty"),
        (PAIR, {"messages": "promt"}, r"'promt' is missing\. Did you mean 'prompt'\? .* data\.messages"),
        (PAIR, {"messages": "prompt"}, "'prompt' is not a list of messages but of type str"),
        ({"m": []}, {"messages": "m"}, "'m' has 0 messages; a prompt and a response are needed"),
        ({"m": [assistant("a")]}, {"messages": "m"}, "'m' has 1 messages"),
        ({"m": [user("a"), user("b")]}, {"messages": "m"}, r"the last message of field 'm' is from 'user'"),
        ({"m": [user("a"), "b"]}, {"messages": "m"}, "message 2 of field 'm' is not an object .* of type str"),
        ({"m": [user("a"), {"role": "assistant"}]}, {"messages": "m"}, "message 2 of field 'm' has no 'content'"),
        ({"m": [user("a"), {}]}, {"messages": "m"}, "message 2 of field 'm' has no 'role'"),
        ({"m": [user("a"), {"rolle": "x"}]}, {"messages": "m"}, r"has no 'role'\. Did you mean 'rolle'\?"),
        ({"m": [{"role": "usr", "content": "a"}]}, {"messages": "m"}, r"the role 'usr'\. Did you mean 'user'\?"),
        ({"m": [{"role": [], "content": "a"}]}, {"messages": "m"}, "message 1 of field 'm' has the role"),
        (
            {"m": [{"role": "\ud800", "content": "a"}]},
            {"messages": "m"},
            r"message 1 of field 'm' has the role '\\ud800'",
        ),
        ({"m": [user(None), assistant("b")]}, {"messages": "m"}, "the content of message 1 of field 'm' is not text"),
        ({"m": [user("a"), assistant("")]}, {"messages": "m"}, "message 2 of field 'm', a response, is empty"),
        ({"m": [user("a"), assistant(""), user("c"), assistant("d")]}, {"messages": "m"}, "message 2 .* is empty"),
    ],
)
def test_bad_samples_are_refused_with_file_and_line(
    jsonl: Jsonl, row: object, settings: dict[str, Any], message: str
) -> None:
    data = jsonl("", row, **settings)
    with pytest.raises(InputError, match=rf"train\.jsonl line 2: .*{message}") as refused:
        load_examples(data.train, data)
    str(refused.value).encode()  # a terminal can show it


BAD = [{"prompt": "p"}, PAIR | {"response": None}, "[1]", '{"prompt": "p', PAIR | {"response": ""}]


def test_bad_samples_are_left_out_and_told(jsonl: Jsonl) -> None:
    rows = [PAIR, BAD[0], PAIR, *BAD[1:], PAIR]
    data = jsonl(*rows, max_bad=0.625)
    examples, bad = load_examples(data.train, data)
    assert [e.index for e in examples] == [0, 2, 7]
    assert [error.place for error in bad] == [f"{data.train.path} line {n}" for n in (2, 4, 5, 6, 7)]
    for error, row in zip(bad, BAD, strict=True):
        alone = jsonl(row, name="alone.jsonl")
        with pytest.raises(InputError) as refused:
            load_examples(alone.train, alone)
        assert str(error).partition(" line ")[2][3:] == str(refused.value).partition(" line ")[2][3:]


def test_too_many_bad_samples_are_refused_with_the_first(jsonl: Jsonl) -> None:
    data = jsonl(PAIR, *BAD, *[PAIR] * 4, max_bad=0.49)
    with pytest.raises(InputError) as refused:
        load_examples(data.train, data)
    path = data.train.path
    assert refused.value.place == str(path)
    assert refused.value.reason == (
        f"5 of 10 samples cannot be read. The first: (1) {path} line 2: field 'response' is missing. Valid: prompt. "
        f"The name is set with data.response. (2) {path} line 3: field 'response' is not text but null. Name a field "
        f"that holds text. (3) {path} line 4: is not an object but of type list."
    )
    assert refused.value.fix == "Mend them, or raise data.max_bad (now 0.49)."
    allowed = data.model_copy(update={"max_bad": 0.5})
    assert len(load_examples(allowed.train, allowed)[0]) == 5


def test_bad_samples_alone_are_refused_whatever_their_share(jsonl: Jsonl) -> None:
    data = jsonl(*BAD, max_bad=1.0)
    with pytest.raises(InputError, match=r"5 of 5 samples cannot be read.* None is left: mend them\.$"):
        load_examples(data.train, data)


def test_only_drawn_samples_are_counted_as_bad(jsonl: Jsonl) -> None:
    """A bad sample has its place in the draw; another one does not come for it."""
    rows = [PAIR if i % 3 else BAD[i % len(BAD)] for i in range(30)]
    data = jsonl(*rows, max_bad=0.99)
    for limit, skip in ((8, 0), (None, 8), (5, 8), (None, 0)):
        examples, bad = load_examples(data.train, data, limit, skip)
        drawn = draw(30, data.seed, limit, skip)
        assert [e.index for e in examples] == [i for i in drawn if i % 3]
        assert [error.place for error in bad] == [f"{data.train.path} line {i + 1}" for i in drawn if i % 3 == 0]


def test_reasons_are_one_line_of_bounded_length(jsonl: Jsonl) -> None:
    fields = {f"a field\n{n}": n for n in range(1000)}
    data = jsonl(PAIR, fields, max_bad=0.5)
    (error,) = load_examples(data.train, data)[1]
    assert error.reason.startswith("field 'prompt' is missing. Valid: a field 0, a field 1, a field 10,")
    assert len(error.reason) < 310
    assert "\n" not in str(error)


def test_questions_and_answers_of_a_task_are_read_whatever_the_fields(jsonl: Jsonl) -> None:
    source = ReasoningGymSource(task="leg_counting", size=20)
    data = DataConfig(train=source, prompt="q", messages="m", prompt_suffix=" Go.")
    examples = load_examples(source, data, limit=3)[0]
    assert all(e.messages[0]["content"].endswith(" Go.") and e.response.isdigit() for e in examples)
    assert [e.origin for e in examples] == [f"reasoning_gym leg_counting item {e.index}" for e in examples]


def test_a_limit_draws_by_the_seed_and_keeps_the_order(jsonl: Jsonl) -> None:
    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(50)]
    data, other = jsonl(*rows, seed=1), jsonl(*rows, seed=2)
    drawn = [e.index for e in load_examples(data.train, data, limit=10)[0]]
    assert drawn == sorted(drawn)
    assert drawn == [e.index for e in load_examples(data.train, data, limit=10)[0]]
    assert drawn != [e.index for e in load_examples(other.train, other, limit=10)[0]]
    assert len(load_examples(data.train, data, limit=99)[0]) == 50


def test_only_drawn_samples_are_looked_at(jsonl: Jsonl) -> None:
    data = jsonl(*[PAIR if i in draw(5, 0, 2) else {} for i in range(5)])
    assert len(load_examples(data.train, data, limit=2)[0]) == 2


def test_holding_out_everything_is_refused(jsonl: Jsonl) -> None:
    data = jsonl(PAIR, PAIR)
    with pytest.raises(InputError, match=r"has 2 samples and 2 of them are held out.* Lower data\.heldout_samples"):
        load_examples(data.train, data, skip=2)


@given(count=st.integers(1, 60), seed=st.integers(0, 99), first=st.integers(1, 60), second=st.integers(1, 60))
def test_consecutive_draws_share_nothing(count: int, seed: int, first: int, second: int) -> None:
    one, two, rest = draw(count, seed, first), draw(count, seed, second, first), draw(count, seed, None, first)
    assert len(one) == min(first, count)
    assert len(two) == min(second, max(0, count - first))
    assert sorted(one + rest) == list(range(count))
    assert set(two) <= set(rest)
    assert two == sorted(set(two))


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand")
def test_gsm8k_is_read() -> None:
    source = FileSource(path=GSM8K)
    examples = load_examples(source, DataConfig(train=source, prompt="question", response="answer"))[0]
    assert len(examples) == 1319
    assert all("####" in e.response for e in examples)
