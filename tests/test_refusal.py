"""Validation errors in plain words: the key, what is wrong with it, and the nearest thing that is right."""

import copy
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from raysft.config import SweepConfig
from raysft.errors import InputError, TrialFailed, did_you_mean
from raysft.refusal import Loc, Refusal, dotted, refusals

VALUES: dict[str, Any] = {
    "name": "s",
    "backbones": [{"name": "one", "path": "a/b"}],
    "data": {"train": {"kind": "file", "path": "train.jsonl"}},
    "evaluation": {"generation": {}},
    "search": {"asha": None},
    "baselines": [{}],
    "space": {"objectives": [{"type": "power"}]},
}


def refused(values: Any) -> list[Refusal]:
    """What is wrong with the values of a sweep file; nothing, if they are valid."""
    try:
        SweepConfig.model_validate(values)
    except ValidationError as error:
        return refusals(SweepConfig, error)
    return []


def replaced(values: Any, loc: Loc, value: Any) -> Any:
    """A copy with the value at loc, mappings on the way made where there are none."""
    if not loc:
        return value
    changed: Any = copy.copy({} if values is None else values)
    inner = changed.get(loc[0]) if isinstance(changed, dict) else changed[loc[0]]
    changed[loc[0]] = replaced(inner, loc[1:], value)
    return changed


def located(key: str) -> Loc:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


# key, value, what is said of it, and how to put it right
CASES: list[tuple[str, Any, str, str]] = [
    # unknown keys
    ("trainig", {}, "'trainig' is not a key here.", "Did you mean 'training'?"),
    ("training.stesp", 3, "'stesp' is not a key here.", "Did you mean 'steps'?"),
    ("training.asha", {}, "'asha' is not a key here.", "It is a key of search."),
    ("training.exponent", 1, "'exponent' is not a key here.", "It is a key of space."),
    ("zero.seed", 4, "'seed' is not a key here.", "It is a key of data and of search."),
    ("zero.zzz", 3, "'zzz' is not a key here.", "Valid: offload, stage."),
    ("backbones.0.pth", "x", "'pth' is not a key here.", "Did you mean 'path'?"),
    ("baselines.0.exponnt", 1, "'exponnt' is not a key here.", "Did you mean 'exponent'?"),
    ("data.train.pth", "x", "'pth' is not a key here.", "Did you mean 'path'?"),
    ("evaluation.generation.sampels", 1, "'sampels' is not a key here.", "Did you mean 'samples'?"),
    # impossible values
    ("training.steps", -1, "must be above 0, not -1.", "The default is null."),
    ("training.learning_rate", 0, "must be above 0, not 0.", "The default is 5e-05."),
    ("training.warmup_ratio", 1.5, "must be at most 1, not 1.5.", "The default is 0.1."),
    ("training.weight_decay", -0.1, "must be at least 0, not -0.1.", "The default is 0.01."),
    ("training.epochs", float("inf"), "must be a finite number, not inf.", "The default is 1."),
    ("baselines.0.threshold", 2, "must be at most 1, not 2.", "The default is null."),
    ("workers.resources.CPU", -1, "must be at least 0, not -1.", ""),
    ("workers.resources", {"cpu": 1}, "'cpu' is no resource of Ray's: write 'CPU', or another name for yours.", ""),
    ("workers.resources", {"CPU": 1, "memroy": 1}, "'memroy' is no resource of Ray's: write 'memory'", ""),
    ("training.precision", "fp16", "must be 'bf16' or 'fp32', not 'fp16'.", "Did you mean 'bf16'?"),
    ("zero.stage", 4, "must be 0, 1, 2 or 3, not 4.", "The default is 1."),
    ("baselines.0.type", "fokal", "must be 'power', 'auto', 'log_one_minus_p'", "Did you mean 'focal'?"),
    ("space.objectives.0.type", "fokal", "must be 'power', 'auto', 'log_one_minus_p'", "Did you mean 'focal'?"),
    ("space.objectives.0.schedule", "x", "must be 'linear' or 'cosine', not 'x'.", "Give a list or 'linear'."),
    ("name", "-a", "must be made of letters, digits", ""),
    ("name", "n" * 101, "must be text of at most 100 characters, not 'nnn", ""),
    ("backbones.0.path", "", "must be text of at least one character, not ''.", ""),
    ("backbones", [], "must be a list of at least 1, not [].", ""),
    (
        "training.betas",
        [0.1, 0.2, 0.3],
        "must be a list of at most 2, not [0.1, 0.2, 0.3].",
        "The default is [0.9, 0.95].",
    ),
    ("data.train.path", "a.csv", "'a.csv' must end in .jsonl, .json or .parquet.", ""),
    ("evaluation.generation.answer_pattern", "(", "not a regular expression", ""),
    # wrong types
    ("training.steps", "many", "must be a whole number, not 'many'.", "The default is null."),
    ("training.steps", 1.5, "must be a whole number, not 1.5.", "The default is null."),
    ("training.steps", [1], "must be a whole number, not [1].", "The default is null."),
    ("training.learning_rate", "fast", "must be a number, not 'fast'.", "The default is 5e-05."),
    ("training.learning_rate", {}, "must be a number, not a mapping.", "The default is 5e-05."),
    ("workers.reuse", "perhaps", "must be true or false, not 'perhaps'.", "The default is true."),
    ("workers.reuse", None, "must be true or false, not null.", "The default is true."),
    ("name", 3, "must be text, not 3.", "Put it in quotes."),
    ("name", None, "must be text, not null.", ""),
    ("output", 3, "must be a path, not 3.", "The default is runs."),
    ("training", 3, "must be a mapping of keys to values, not 3.", "Leave the key out for its defaults."),
    ("training", None, "must be a mapping of keys to values, not null.", "Leave the key out for its defaults."),
    ("backbones", {}, "must be a list, not a mapping.", ""),
    ("backbones.0", "a/b", "must be a mapping of keys to values, not 'a/b'.", ""),
    ("backbones.0.overrides", [], "must be a mapping of keys to values, not [].", "The default is a mapping."),
    ("space.keep", "above", "must be a list, not 'above'.", "The default is ['above']."),
    ("training.betas", 0.9, "must be a list, not 0.9.", "The default is [0.9, 0.95]."),
    ("training.steps", "x" * 99, "must be a whole number, not '" + "x" * 56 + "....", "The default is null."),
    ("training.steps", list(range(99)), "must be a whole number, not a list of 99.", "The default is null."),
    # unions: only the branch that was meant is spoken of
    (
        "space.exponent",
        "big",
        "must be a number, not 'big'.",
        "Give a number or a list or a range {low: ..., high: ...}.",
    ),
    (
        "space.exponent",
        None,
        "must be a number, not null.",
        "Give a number or a list or a range {low: ..., high: ...}.",
    ),
    ("space.exponent", [], "must be a list of at least 1, not [].", "Give a number or a list or a range"),
    ("space.exponent", {"low": 2, "high": 1}, "low (2) must be below high (1).", ""),
    ("data.train.kind", "files", "must be 'file', 'hub' or 'reasoning_gym', not 'files'.", "Did you mean 'file'?"),
    ("data.train", 3, "must be a mapping of keys to values, not 3.", ""),
    ("search.sampler", "gird", "must be 'tpe', 'random' or 'grid', not 'gird'.", "Did you mean 'grid'?"),
    # missing keys
    # keys that contradict each other
    ("zero", {"stage": 1, "offload": "all"}, "offloading the weights needs stage 3.", ""),
]

# the same, told at another key (third)
ELSEWHERE: list[tuple[str, Any, str, str, str]] = [
    ("training.lora", {"dropout": 1}, "training.lora.dropout", "must be below 1, not 1.", "The default is 0."),
    ("space.keep", ["abov"], "space.keep.0", "must be 'above' or 'below', not 'abov'.", "Did you mean 'above'?"),
    ("space.exponent", ["big"], "space.exponent.0", "must be a number, not 'big'.", ""),
    ("space.exponent", {"low": 1}, "space.exponent.high", "'high' is missing.", "Add it."),
    (
        "space.exponent",
        {"low": 1, "high": 2, "stpe": 1},
        "space.exponent.stpe",
        "'stpe' is not a key here.",
        "Did you mean 'step'?",
    ),
    ("space.threshold", {"low": "a", "high": 1}, "space.threshold.low", "must be a number, not 'a'.", ""),
    ("space.exponent", [1, 0.5, 1], "space", "exponent lists 1 twice: name each value once.", ""),
    ("search.sampler", "grid", "search.sampler", "search.sampler grid needs values, but space.exponent is a range", ""),
    ("search.trials", None, "search", "trials null means a whole grid: give the sampler tpe a number of trials.", ""),
    ("space.threshold", [0.1, 2], "space", "thresholds lie between 0 and 1.", ""),
    (
        "training.lora",
        {"target_modules": "all"},
        "training.lora.target_modules",
        "must be 'all-linear', not 'all'.",
        "Give 'all-linear' or a list.",
    ),
    (
        "training.lora",
        {"target_modules": [1]},
        "training.lora.target_modules.0",
        "must be text, not 1.",
        "Put it in quotes.",
    ),
    (
        "data.train",
        {"path": "x"},
        "data.train.kind",
        "'kind' is missing.",
        "Set it to 'file', 'hub' or 'reasoning_gym'.",
    ),
    ("data.train", {"kidn": "hub"}, "data.train.kidn", "'kidn' is not a key here.", "Did you mean 'kind'?"),
    ("data.train", {"kind": "hub"}, "data.train.path", "'path' is missing.", "Add it."),
    ("data.train", {"kind": "reasoning_gym", "task": "t", "size": 0}, "data.train.size", "must be above 0, not 0.", ""),
    (
        "backbones.0",
        {"name": "x"},
        "backbones.0.path",
        "'path' is missing.",
        "Add it: Hugging Face hub id, or a folder",
    ),
    ("data", {}, "data.train", "'train' is missing.", "Add it."),
    (
        "search.asha",
        {},
        "search.asha.grace_period",
        "'grace_period' is missing.",
        "Add it: steps that every trial gets",
    ),
    (
        "workers.count",
        3,
        "training.global_batch_size",
        "training.global_batch_size (256) must be a multiple",
        "",
    ),
    ("evaluation", {}, "search.metric", "search.metric eval/accuracy needs evaluation.generation", ""),
]


@pytest.mark.parametrize(("key", "value", "reason", "fix"), CASES, ids=[f"{k}={v!s:.20}" for k, v, *_ in CASES])
def test_one_refusal_names_key_reason_and_fix(key: str, value: Any, reason: str, fix: str) -> None:
    assert_refused(key, value, key, reason, fix)


@pytest.mark.parametrize(("key", "value", "told_at", "reason", "fix"), ELSEWHERE)
def test_a_refusal_is_told_where_it_is(key: str, value: Any, told_at: str, reason: str, fix: str) -> None:
    assert_refused(key, value, told_at, reason, fix)


def assert_refused(key: str, value: Any, told_at: str, reason: str, fix: str) -> None:
    """reason and fix: how they begin; an empty fix: none is given."""
    (refusal,) = refused(replaced(VALUES, located(key), value))
    assert refusal.loc == located(told_at)
    assert refusal.reason.startswith(reason)
    assert refusal.fix.startswith(fix)
    assert bool(refusal.fix) == bool(fix)


def test_valid_values_are_not_refused() -> None:
    assert refused(VALUES) == []


def test_every_error_is_told_once() -> None:
    values = VALUES | {
        "seed": -1,
        "export": "al",
        "training": {"steps": 0, "betas": [1, 2]},
        "space": {"exponent": "x"},
    }
    told = {dotted(r.loc) for r in refused(values)}
    assert told == {"seed", "export", "training.steps", "training.betas[0]", "training.betas[1]", "space.exponent"}
    assert len(refused(values)) == len(told)


def test_what_is_no_mapping_is_told_of_the_file_as_a_whole() -> None:
    assert refused([1]) == [Refusal((), "must be a mapping of keys to values, not [1].")]


@pytest.mark.parametrize(
    ("loc", "text"), [((), ""), (("a",), "a"), (("a", 0, "b", 1, 2), "a[0].b[1][2]"), ((0, "a"), "[0].a")]
)
def test_dotted(loc: Loc, text: str) -> None:
    assert dotted(loc) == text


# --- any value anywhere ---------------------------------------------------------------------------------------------


EVERYTHING = {
    "training": {"lora": {}},
    "evaluation": {"every": 5, "generation": {}},
    "search": {"asha": {"grace_period": 5}},
}
FULL = SweepConfig.model_validate(VALUES | EVERYTHING).model_dump(mode="json")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "high", "kind", "x"]), inner),
    max_leaves=5,
)


def places(values: Any, loc: Loc = ()) -> list[Loc]:
    """Every place in the values, and a place beside each."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    below = [place for key, value in inner for place in places(value, (*loc, key))]
    return [loc, *below, *([(*loc, "x")] if isinstance(values, dict) else [])]


def leads_somewhere(values: Any, loc: Loc) -> bool:
    for key in loc:
        keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
        if key not in keys:
            return False
        values = values[key]
    return True


@given(st.sampled_from(places(FULL)), JUNK)
def test_any_value_anywhere_is_taken_or_refused_in_plain_words(place: Loc, value: Any) -> None:
    values = replaced(FULL, place, value)
    for refusal in refused(values):
        assert leads_somewhere(values, refusal.loc[:-1])
        assert refusal.reason.endswith(".")
        assert not refusal.fix or refusal.fix[-1] in ".?"
        assert "Input should" not in refusal.reason


@given(st.lists(st.tuples(st.sampled_from(places(FULL)[1:]), JUNK), min_size=2, max_size=4))
@example([(("space", "objectives", 0, "schedule"), [])])
def test_several_errors_do_not_hide_each_other(changes: list[tuple[Loc, Any]]) -> None:
    """Of a union only one branch is spoken of; something must always be."""
    values = FULL
    for place, value in changes:
        if leads_somewhere(values, place):
            values = replaced(values, place, value)
    assert bool(refused(values)) == (not is_valid(values))


def is_valid(values: Any) -> bool:
    try:
        SweepConfig.model_validate(values)
    except ValidationError:
        return False
    return True


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_input_error_reads_as_one_line_and_survives_pickling() -> None:
    error = InputError("train.jsonl line 7", "field 'answer' is missing.", "Did you mean 'response'?")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "train.jsonl line 7: field 'answer' is missing. Did you mean 'response'?"
    assert (again.place, again.reason, again.fix) == (error.place, error.reason, error.fix)
    assert str(InputError("f", "is empty.")) == "f: is empty."
    assert not isinstance(error, TrialFailed)


@pytest.mark.parametrize(
    ("name", "valid", "said"),
    [
        ("stesp", ["steps", "epochs"], "Did you mean 'steps'?"),
        ("zzz", ["b", "a"], "Valid: a, b."),
        ("epoch", ["steps", "epochs"], "Did you mean 'epochs'?"),
    ],
)
def test_did_you_mean(name: str, valid: list[str], said: str) -> None:
    assert did_you_mean(name, valid) == said
