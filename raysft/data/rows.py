"""Raw samples of a source: files, hub data sets, reasoning-gym tasks. Fields are read in `raysft.data.sources`."""

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raysft.config import FileSource, HubSource, ReasoningGymSource, Source
from raysft.config.source import ending
from raysft.errors import InputError, did_you_mean
from raysft.store import is_in_bucket, read_object

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """count samples; take(indices) reads those, in that order; place(index) names one for the user.

    bad: index -> why that sample is no object with fields. It keeps its index, and take gives {} for it.
    """

    count: int
    take: Callable[[Sequence[int]], list[Row]]
    place: Callable[[int], str]
    bad: Mapping[int, InputError] = field(default_factory=dict)


def describe(source: Source) -> str:
    """The source as the user knows it, e.g. `gsm8k[train]`."""
    if source.kind == "file":
        return source.path
    if source.kind == "hub":
        return f"{source.path}[{source.key or source.split}]"
    return f"reasoning_gym {source.task}"


def read_rows(source: Source, lenient: bool = False) -> Rows:
    """The source's samples. Lines count from 1, rows and items from 0.

    Raises InputError for what cannot be read or holds no samples; lenient: not for single samples, which are in `bad`.
    """
    if source.kind == "file" and source.key is not None:
        rows = _list_in_json(source.path, source.key)
    elif source.kind == "file":
        rows = _READERS[ending(source.path)](source.path)
    elif source.kind == "hub":
        rows = _hub(source)
    else:
        rows = _reasoning_gym(source)
    if rows.count == 0:
        raise InputError(describe(source), "holds no samples.")
    if rows.bad and not lenient:
        raise rows.bad[min(rows.bad)]
    return rows


def check_some_left(source: Source, count: int, skip: int) -> None:
    """Raises InputError where all of the source's `count` samples are held out."""
    if skip >= count:
        raise InputError(
            describe(source),
            f"has {count} samples and {skip} of them are held out: none is left to train on.",
            "Lower data.heldout_samples, or name a source of its own in data.heldout.",
        )


def content_id(source: Source) -> str:
    """A string that differs whenever the source's content may differ; a file's own place does not matter."""
    if isinstance(source, FileSource):
        return f"{ending(source.path)}{source.key or ''}{hashlib.sha256(_bytes(source.path)).hexdigest()}"
    if isinstance(source, ReasoningGymSource):
        return f"reasoning_gym {version('reasoning_gym')} {source.model_dump_json()}"
    folder = Path(source.path)
    if not folder.is_dir():
        return f"hub {_load_hub(source)._fingerprint}"
    content = hashlib.sha256(source.model_dump_json(exclude={"path"}).encode())
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content.update(f"{file.relative_to(folder)} {hashlib.sha256(_bytes(file)).hexdigest()}\n".encode())
    return content.hexdigest()


# --- files ----------------------------------------------------------------------------------------------------------


def _bytes(place: str | Path) -> bytes:
    if is_in_bucket(str(place)):
        return read_object(str(place))
    path = Path(place)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        fix = did_you_mean(path.name, siblings) if siblings else f"There is no such file in '{path.parent}'."
        raise InputError(str(path), "does not exist.", fix) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}.") from error


def _text(path: str) -> str:
    content = _bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_utf8(f"{path} line {line}") from None


def _not_utf8(place: str) -> InputError:
    return InputError(place, "is not UTF-8 text.", "Save the file with the encoding UTF-8.")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(place, f"is not JSON: {error.msg} ({where}column {error.colno}).") from None
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond what Python reads
        raise InputError(place, f"cannot be read as JSON: {error}.") from None


def _rows(raw: Sequence[Any], read: Callable[[Any, str], Row], place: Callable[[int], str]) -> Rows:
    """read(value, its place) makes a row of each raw value, or raises InputError."""
    rows: list[Row] = []
    bad: dict[int, InputError] = {}
    for index, value in enumerate(raw):
        try:
            rows.append(read(value, place(index)))
        except InputError as error:
            rows.append({})
            bad[index] = InputError(*error.args)  # the raised one would keep the value and its frames in memory
    return Rows(len(rows), lambda indices: [rows[i] for i in indices], place, bad)


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(place, f"is not an object but of type {type(value).__name__}.")
    return value


def _line(line: bytes, place: str) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _not_utf8(place) from None
    return _object(_parse(text, place), place)


def _jsonl(path: str) -> Rows:
    lines = enumerate(_bytes(path).removeprefix(BOM_UTF8).split(b"\n"), start=1)
    filled = [(number, line) for number, line in lines if line.decode(errors="replace").strip()]
    return _rows([line for _, line in filled], _line, lambda i: f"{path} line {filled[i][0]}")


def _json(path: str) -> Rows:
    values = _parse(_text(path), str(path))
    if not isinstance(values, list):
        lists = [key for key, value in values.items() if isinstance(value, list)] if isinstance(values, dict) else []
        fix = f"Name the list in it with key: {', '.join(lists)}." if lists else "Use .jsonl for one object a line."
        raise InputError(str(path), "does not hold a list of objects.", fix)
    return _rows(values, _object, lambda i: f"{path} item {i}")


def _list_in_json(path: str, key: str) -> Rows:
    values = _parse(_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(str(path), f"holds no object with the key '{key}'.", "Leave key out for a plain list.")
    if key not in values:
        raise InputError(str(path), f"has no key '{key}'.", did_you_mean(key, list(values)) if values else "")
    if not isinstance(values[key], list):
        raise InputError(f"{path} {key}", "is not a list of objects.", "Name a key that holds a list.")
    return _rows(values[key], _object, lambda i: f"{path} {key} item {i}")


def _parquet(path: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    content = _bytes(path)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(str(path), f"is not a readable Parquet file: {_first_line(error)}") from None

    def take(indices: Sequence[int]) -> list[Row]:
        try:
            return table.take(list(indices)).to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, or dates beyond Python's
            raise InputError(str(path), f"cannot be read: {_first_line(error)}") from None

    return Rows(table.num_rows, take, lambda i: f"{path} row {i}")


_READERS: dict[str, Callable[[str], Rows]] = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


# --- hub and reasoning-gym ------------------------------------------------------------------------------------------


def _load_hub(source: HubSource) -> Any:
    import datasets

    asked = {"data_files": source.file, "field": source.key}
    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        return datasets.load_dataset(source.path, source.subset, split=source.split, revision=source.revision, **asked)
    except Exception as error:  # the library raises many kinds; the user needs one sentence
        reason = f"cannot be loaded: {_first_line(error)}"
        raise InputError(describe(source), reason, "Check path, subset, split, revision and access.") from error


def _hub(source: HubSource) -> Rows:
    dataset = _load_hub(source)
    return Rows(
        len(dataset), lambda indices: dataset.select(indices).to_list(), lambda i: f"{describe(source)} row {i}"
    )


def _reasoning_gym(source: ReasoningGymSource) -> Rows:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    place = describe(source)
    if source.task not in DATASETS:
        raise InputError(place, "is not a task of reasoning-gym.", did_you_mean(source.task, list(DATASETS)))
    valid = [f.name for f in fields(DATASETS[source.task][1])]
    for name in source.params:
        if name not in valid:
            raise InputError(place, f"has no parameter '{name}'.", did_you_mean(name, valid))
    try:
        dataset = reasoning_gym.create_dataset(source.task, size=source.size, seed=source.seed, **source.params)
    except Exception as error:  # tasks validate with assertions and errors of any kind
        raise InputError(place, f"refuses its parameters: {_first_line(error)}") from error

    def take(indices: Sequence[int]) -> list[Row]:
        try:
            return [dataset[i] for i in indices]
        except Exception as error:  # parameters that only generating a sample reveals as impossible
            raise InputError(place, f"cannot be generated: {_first_line(error)}", "Check its params.") from error

    return Rows(source.size, take, lambda i: f"{place} item {i}")


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    return (line if len(line) <= 300 else line[:300] + " ...") + "."
