"""YAML text: read as YAML 1.2, with lines, and written so that it reads back the same."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.errors import InputError
from raysft.yamltext import parse, write

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
LOOKALIKES = [
    "no",
    "on",
    "12:30",
    "1e5",
    "0x1f",
    "~",
    "",
    "null",
    "True",
    "<<",
    "=",
    "- a",
    "a: b",
    "# a",
    "*a",
    "2020-01-01",
]
VALUES = st.recursive(
    SCALARS | st.sampled_from(LOOKALIKES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(LOOKALIKES), inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("007", 7),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("'1'", "1"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("v1.5", "v1.5"),
        ("{a: [1, b]}", {"a": [1, "b"]}),
        ("{a: }", {"a": None}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse(text, "f").values
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse(".nan", "f").values)


@given(VALUES)
def test_what_is_written_reads_back_the_same(values: Any) -> None:
    document = parse(write(values), "f")
    assert document.values == values
    assert document.refused == []


def test_equal_parts_are_written_out_twice() -> None:
    part = [1, 2]
    assert "&" not in write({"a": part, "b": part})


def test_anchors_and_merges_are_read() -> None:
    document = parse("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n", "f")
    assert document.values["b"] == {"x": 1, "y": 3}
    assert document.refused == []
    assert document.find(("b", "y")) == (2, 4)
    assert document.find(("b", "x")) == (2, 1)


# --- lines ----------------------------------------------------------------------------------------------------------


TEXT = """\
# a comment

name: x
backbones:
  - name: one
    path: p
  - {name: two, path: q}
data:
  train:
    kind: file
"""


@pytest.mark.parametrize(
    ("loc", "depth", "line"),
    [
        ((), 0, 3),
        (("name",), 1, 3),
        (("name", "inner"), 1, 3),
        (("backbones",), 1, 4),
        (("backbones", 0), 2, 5),
        (("backbones", 0, "path"), 3, 6),
        (("backbones", 1, "path"), 3, 7),
        (("backbones", 2), 1, 4),
        (("backbones", "one"), 1, 4),
        (("data", "train", "kind"), 3, 10),
        (("data", "train", "path"), 2, 9),
        (("training", "steps"), 0, 3),
    ],
)
def test_a_place_is_found_as_deep_as_the_file_goes(loc: tuple[str | int, ...], depth: int, line: int) -> None:
    assert parse(TEXT, "f").find(loc) == (depth, line)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "reason", "fix"),
    [
        ("", "f", "is empty.", "sweeps/"),
        ("# only a comment\n", "f", "is empty.", "sweeps/"),
        ("a: 1\n\tb: 2\n", "f line 2", "cannot start any token", "Indent with spaces, not tabs."),
        ("a: 1\nb: c: d\n", "f line 2", "mapping values are not allowed", "put text that holds ': ' in quotes"),
        ("a:\n  - 1\n b: 2\n", "f line 3", "is not YAML", "Check the indentation"),
        ("a: 1\nb: [1, 2\n", "f line 3", "is not YAML", "brackets and quotes"),
        ("a: 1\nb: 'x\n", "f line 3", "is not YAML", "brackets and quotes"),
        ("a: 1\nb: *x\n", "f line 2", "undefined alias 'x'", "Check"),
        ("a: 1\nb: !!python/object:os.system x\n", "f line 2", "constructor for the tag", "write the plain value"),
        ("a: 1\nb: !file x\n", "f line 2", "constructor for the tag", "write the plain value"),
        ("a: 1\nb: &b [*b]\n", "f line 2", "recursive", "another anchor"),
        ("a: &a\n  b: {c: *a}\n", "f line 1", "recursive", "another anchor"),
        ("---\na: 1\n---\nb: 2\n", "f line 3", "another document", "Check"),
        ("a: 1\nb: \x07\n", "f line 2", "a character that YAML does not allow", "Remove it."),
        ("[" * 5000, "f", "is nested too deeply.", "a handful of levels"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(text: str, place: str, reason: str, fix: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(text, "f")
    assert refused.value.place == place
    assert reason in refused.value.reason
    assert fix in refused.value.fix


def test_text_of_one_line_has_no_line_numbers() -> None:
    """Such is what --set takes."""
    with pytest.raises(InputError) as refused:
        parse("[1, 2", "--set a=[1, 2")
    assert refused.value.place == "--set a=[1, 2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "f line 3: 'a' is in line 1 already. Keep one of the two."),
        ("x:\n  - a: 1\n    a: 1\n", "f line 3: 'a' is in line 2 already. Keep one of the two."),
        ("a: 1\n2: b\n", "f line 2: a key '2' is not text. Put it in quotes."),
        ("a: 1\ntrue: b\n", "f line 2: a key 'true' is not text. Put it in quotes."),
        ("a: 1\n? [b]\n: 2\n", "f line 2: a key that is a list or mapping is not text. Put it in quotes."),
    ],
)
def test_keys_that_stand_twice_or_are_not_text_are_told(text: str, expected: str) -> None:
    assert [str(error) for error in parse(text, "f").refused] == [expected]


def test_all_such_keys_are_told() -> None:
    assert len(parse("a: 1\na: 2\na: 3\n1: x\n", "f").refused) == 3


def refusal_of(text: str) -> InputError | None:
    try:
        parse(text, "f")
    except InputError as error:
        return error
    return None


@given(st.text(max_size=60) | st.text(alphabet="ab:{}[]&*!'\"\n\t -#,?<|>%~0", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    error = refusal_of(text)
    assert error is None or (error.place.startswith("f") and error.reason.endswith("."))
