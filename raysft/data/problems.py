"""The problems of a task, read from its source: what the model is told, and the answer that it is judged by."""

import hashlib
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Literal

from raysft.config import TaskConfig
from raysft.data.rows import Row, describe, read_rows
from raysft.data.sources import Example, as_text, kind_of, value_of
from raysft.errors import InputError, did_you_mean

Part = Literal["all", "search", "report"]  # of the problems: what the search never sees is kept for the report


def spread(total: int, count: int | None) -> list[int]:
    """`count` indices below `total` at an even stride from 0 on; all of them where there are no more."""
    count = total if count is None else min(count, total)
    return [i * total // count for i in range(count)]


def part_of(numbers: Sequence[int], part: Part, share: float) -> list[int]:
    """Those of the numbered problems that belong to a part: a share of them to the report, the others to the search.

    A problem's part depends on its number alone, whichever others there are.
    """
    return [number for number in numbers if part == "all" or (_place(number) < share) == (part == "report")]


def _place(number: int) -> float:
    """In [0, 1), as if drawn at random."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:4]) / 2**32


def task_examples(name: str, task: TaskConfig) -> list[Example]:
    """The task's problems, at most task.problems of them. Raises InputError for a row that cannot be read."""
    rows = read_rows(task.source)
    numbers: Sequence[int] = range(rows.count)
    if task.where:
        kept = [i for i, row in zip(numbers, rows.take(numbers), strict=True) if _kept(row, task, rows.place(i))]
        if not kept:
            reason = f"no row has {', '.join(f'{field} {value!r}' for field, value in task.where.items())}."
            raise InputError(describe(task.source), reason, f"Change evaluation.tasks.{name}.where.")
        numbers = kept
    numbers = [numbers[i] for i in spread(len(numbers), task.problems)]
    return [_example(row, name, task, rows.place(i), i) for i, row in zip(numbers, rows.take(numbers), strict=True)]


def _kept(row: Row, task: TaskConfig, place: str) -> bool:
    return all(value_of(row, "where", field, place) == value for field, value in task.where.items())


def _example(row: Row, name: str, task: TaskConfig, place: str, index: int) -> Example:
    setting = f"evaluation.tasks.{name}"
    question = as_text(value_of(row, f"{setting}.prompt", task.prompt, place), f"field '{task.prompt}'", place)
    response = _answer(value_of(row, f"{setting}.response", task.response, place), task, place)
    options = None
    if task.options is not None:
        fields = [task.options] if isinstance(task.options, str) else task.options
        values = [value_of(row, f"{setting}.options", field, place) for field in fields]
        options = _options(values[0] if isinstance(task.options, str) else values, ", ".join(fields), place)
        response = _label(response, options, row, task, place)
    text = "\n".join(f"{label}. {option}" for label, option in (options or {}).items())
    told = task.instruction.replace("{options}", text).replace("{prompt}", question)
    messages = [{"role": "user", "content": told}, {"role": "assistant", "content": response}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    return Example(messages, place, index, options)


def _answer(value: Any, task: TaskConfig, place: str) -> str:
    """An answer; some benchmarks keep it in a list, or at the end of a solution."""
    values = value if isinstance(value, list) and value else [value]
    text = ", ".join(as_text(item, f"field '{task.response}'", place) for item in values)
    if not text.strip():
        raise InputError(place, f"the answer (field '{task.response}') is empty.", "Remove the problem, or fill it in.")
    if task.response_pattern is None:
        return text
    found = last_match(re.compile(task.response_pattern), text)
    if found is None:
        reason = f"the answer (field '{task.response}') has no match of response_pattern '{task.response_pattern}'."
        raise InputError(place, reason, "Change response_pattern, or the answer.")
    return found


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match that is not empty; of a match the first group."""
    found = [_captured(match) for match in pattern.finditer(text)]
    return next((answer for answer in reversed(found) if answer), None)


def _captured(match: re.Match[str]) -> str:
    groups = (group for group in match.groups() if group is not None)
    return next(groups, match[0]).strip()


def _options(value: Any, field: str, place: str) -> dict[str, str]:
    """A list gets the labels A, B, C, ...; a label without a text is left out: rows of one table share their labels."""
    if isinstance(value, list):
        value = dict(zip(ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        raise InputError(place, f"field '{field}' holds no options but is {kind_of(value)}.", "Name a list or mapping.")
    options = {
        str(label).strip(): as_text(text, f"option {label} of field '{field}'", place).strip()
        for label, text in value.items()
        if text is not None
    }
    if len(options) < 2:
        raise InputError(place, f"field '{field}' has {len(options)} options; two are needed.", "Remove the problem.")
    return options


def _label(response: str, options: dict[str, str], row: Row, task: TaskConfig, place: str) -> str:
    """The label of the right option: a whole number is its position from 0, a text its label or its own text."""
    answer, given = response.strip(), row.get(task.response)
    if isinstance(given, int) and 0 <= given < len(options):
        return list(options)[given]
    if answer in options:
        return answer
    if answer in options.values():
        return next(label for label, text in options.items() if text == answer)
    reason = f"the answer '{answer}' (field '{task.response}') is none of its options."
    raise InputError(place, reason, did_you_mean(answer, list(options)))
