"""Samples of a data source as chat messages, each with the place it came from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysft.config import DataConfig, Source
from raysft.data.rows import Row, check_some_left, describe, read_rows
from raysft.errors import InputError, did_you_mean

Message = dict[str, str]
ROLES = ["assistant", "system", "user"]
LONGEST_REASON = 300  # characters of the reason why a sample is left out


@dataclass(frozen=True)
class Example:
    """messages: role and content, the last one is the assistant's response.

    origin: where it stands, for the user ("train.jsonl line 7"); index: its position in the source, from 0; options:
    label -> text of a multiple choice, whose response is a label.
    """

    messages: list[Message]
    origin: str
    index: int
    options: dict[str, str] | None = None

    @property
    def response(self) -> str:
        return self.messages[-1]["content"]

    @property
    def prompt_messages(self) -> list[Message]:
        return self.messages[:-1]


def load_examples(
    source: Source, data: DataConfig, limit: int | None = None, skip: int = 0
) -> tuple[list[Example], list[InputError]]:
    """At most `limit` samples, drawn without replacement by data.seed, in the order of the source.

    skip: so many samples of the draw come first and belong to another split. The second list says, in the same order,
    why the others of those drawn are left out: they cannot be read as data.prompt and data.response, or as
    data.messages. Raises InputError with file and line for the first of them where data.max_bad is 0, else where their
    share of those drawn is above it.
    """
    rows = read_rows(source, lenient=data.max_bad > 0)
    check_some_left(source, rows.count, skip)
    if source.kind == "reasoning_gym":
        data = data.model_copy(update={"prompt": "question", "response": "answer", "messages": None})
    chosen = draw(rows.count, data.seed, limit, skip)
    examples: list[Example] = []
    bad: list[InputError] = []
    for i, row in zip(chosen, rows.take(chosen), strict=True):
        try:
            if i in rows.bad:
                raise rows.bad[i]
            examples.append(_example(row, data, rows.place(i), i))
        except InputError as error:
            if data.max_bad == 0:
                raise
            bad.append(_shortened(error))
    _check_bad(bad, len(chosen), data, source)
    return examples, bad


def share_unread(bad: int, drawn: int, first: Sequence[InputError]) -> str:
    """How many of the drawn samples cannot be read, and the first reasons, in one line."""
    reasons = [str(error) for error in first]
    if len(reasons) > 1:
        reasons = [f"({n}) {reason}" for n, reason in enumerate(reasons, start=1)]
    return f"{bad:,} of {drawn:,} samples cannot be read. The first: {' '.join(reasons)}"


def _check_bad(bad: list[InputError], drawn: int, data: DataConfig, source: Source) -> None:
    if len(bad) == drawn:
        raise InputError(describe(source), share_unread(len(bad), drawn, bad[:3]), "None is left: mend them.")
    if len(bad) / drawn > data.max_bad:
        fix = f"Mend them, or raise data.max_bad (now {data.max_bad:g})."
        raise InputError(describe(source), share_unread(len(bad), drawn, bad[:3]), fix)


def _shortened(error: InputError) -> InputError:
    """The same in one line of bounded length, whatever the row holds that it quotes."""
    reason = " ".join(f"{error.reason} {error.fix}".split())
    return InputError(error.place, reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ...")


def draw(count: int, seed: int, limit: int | None, skip: int = 0) -> list[int]:
    """Sorted indices below `count`: those that a seeded shuffle puts at positions skip to skip + limit."""
    if skip == 0 and (limit is None or limit >= count):
        return list(range(count))
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    end = count if limit is None else skip + limit
    return sorted(shuffled[skip:end].tolist())


def _example(row: Row, data: DataConfig, place: str, index: int) -> Example:
    if data.messages is None:
        messages = [
            {"role": "user", "content": _field(row, "prompt", data.prompt, place)},
            {"role": "assistant", "content": _field(row, "response", data.response, place)},
        ]
    else:
        messages = _chat(value_of(row, "data.messages", data.messages, place), data.messages, place)
    for message in messages:
        if message["role"] == "user":
            message["content"] += data.prompt_suffix
    if data.system is not None and all(m["role"] != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": data.system})
    return Example(messages, place, index)


def _chat(value: Any, field: str, place: str) -> list[Message]:
    if not isinstance(value, list):
        raise InputError(place, f"field '{field}' is not a list of messages but {kind_of(value)}.")
    messages = [_message(m, f"message {n} of field '{field}'", place) for n, m in enumerate(value, start=1)]
    if len(messages) < 2:
        raise InputError(place, f"field '{field}' has {len(messages)} messages; a prompt and a response are needed.")
    if messages[-1]["role"] != "assistant":
        raise InputError(
            place,
            f"the last message of field '{field}' is from '{messages[-1]['role']}'.",
            "End each sample with the assistant's response.",
        )
    return messages


def _message(value: Any, name: str, place: str) -> Message:
    if not isinstance(value, dict):
        raise InputError(place, f"{name} is not an object with role and content but {kind_of(value)}.")
    for key in ("role", "content"):
        if key not in value:
            raise InputError(place, f"{name} has no '{key}'.", did_you_mean(key, list(value)) if value else "")
    role = value["role"]
    if role not in ROLES:
        raise InputError(place, f"{name} has the role '{role}'.", did_you_mean(str(role), ROLES))
    content = as_text(value["content"], f"the content of {name}", place)
    if role == "assistant" and not content.strip():
        raise InputError(place, f"{name}, a response, is empty.", "Remove the sample, or fill it in.")
    return {"role": role, "content": content}


def _field(row: Row, key: str, field: str, place: str) -> str:
    text = as_text(value_of(row, f"data.{key}", field, place), f"field '{field}'", place)
    if key == "response" and not text.strip():
        raise InputError(place, f"the response (field '{field}') is empty.", "Remove the sample, or fill it in.")
    return text


def value_of(row: Row, setting: str, field: str, place: str) -> Any:
    """The row's field, which `setting` names; `a.b` is the field b of a. Raises InputError where there is none."""
    if field in row:
        return row[field]
    outer, _, inner = field.partition(".")
    if inner and isinstance(row.get(outer), dict):
        return value_of(row[outer], setting, inner, place)
    fix = did_you_mean(field, list(row)) if row else "The sample has no fields at all."
    raise InputError(place, f"field '{field}' is missing.", f"{fix} The name is set with {setting}.")


def as_text(value: Any, name: str, place: str) -> str:
    """Text, or a number as text. Raises InputError, calling the value `name`, for anything else."""
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if is_number and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(place, f"{name} is not text but {kind_of(value)}.", "Name a field that holds text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(place, f"{name} is not valid Unicode: it holds half of a surrogate pair.") from None
    return value


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return f"the number {value}" if isinstance(value, float) else f"of type {type(value).__name__}"
