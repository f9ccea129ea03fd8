"""Sweep files: YAML into a `SweepConfig`, and back. Every refusal says where, why and what to do.

Relative paths in a file (data, output, folders of backbones) are relative to the current working directory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysft.config import OVERRIDABLE, FileSource, HubSource, SweepConfig, TaskConfig, merge, merges, task_values
from raysft.errors import InputError, did_you_mean
from raysft.redaction import holds_secret
from raysft.refusal import Loc, Refusal, dotted, refusals
from raysft.yamltext import Document, parse, write

M = TypeVar("M", bound=BaseModel)

SECRETS = (
    "Take it out and set it in the environment: HF_TOKEN for the hub, MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD for a server of MLflow, PGPASSWORD or ~/.pgpass for PostgreSQL; for MySQL, end the "
    "address with ?read_default_file=~/.my.cnf."
)


def load(path: Path, sets: Sequence[str] = (), overlays: Sequence[Path] = ()) -> SweepConfig:
    """The sweep of a YAML file, its values replaced by the overlays' in turn, then by `sets`: `a.b=c`, c being YAML.

    An overlay is a YAML file with some of a sweep file's keys. Sections are merged key by key, as a backbone's
    overrides are; a list replaces a list. The sweep is then called NAME-OVERLAY by the overlay's file, unless the
    overlay has a name itself: results of the two must not get into one folder.
    Items of lists are named by position or by their name: `backbones.0.path=...`, `backbones.small.path=...`.
    Raises one InputError for all that is wrong, including what a backbone's overrides make wrong.
    """
    layers = [_Layer.read(path), *map(_Layer.read, overlays)]
    values = _laid_over(layers)
    settings: list[Setting] = []
    problems = [refused for layer in layers for refused in layer.document.refused]
    for text in sets:
        setting = _setting(values, text)
        values = _replaced(values, setting.loc, setting.document.values)
        settings.append(setting)
        problems += setting.document.refused
    places = _Places(layers, settings)
    try:
        config = SweepConfig.model_validate(values)
        found = [
            *_texts_refused(values),
            *_booleans_refused(values, config.model_dump(mode="json")),
            *_overrides_refused(config),
        ]
    except ValidationError as error:
        found = refusals(SweepConfig, error)
    problems += [places.refuse(refusal) for refusal in found]
    if problems:
        raise together(path, problems)
    return config


def validated(model: type[M], values: dict[str, Any], place: str) -> M:
    """The values as a model. Raises InputError at `place` and the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [InputError(f"{place} {dotted(r.loc)}".strip(), r.reason, r.fix) for r in refusals(model, error)]
        raise together(place, found) from None


def load_tasks(names: Sequence[str], sets: Sequence[str] = ()) -> dict[str, TaskConfig]:
    """Tasks by built-in name, or YAML files of one's own, each with the keys that `sets` change: `samples=4`.

    Raises InputError for what is no task or no setting of one.
    """
    tasks = {}
    for name in names:
        changes: dict[str, Any] = {"file": name} if name.endswith((".yaml", ".yml")) else {}
        name = Path(name).stem if changes else name
        for text in sets:
            setting = _setting(changes, text)
            if setting.document.refused:
                raise setting.document.refused[0]
            changes = _replaced(changes, setting.loc, setting.document.values)
        try:
            values = task_values(name, changes)
        except ValueError as error:
            raise InputError(f"--task {name}", f"{error}.") from None
        tasks[name] = validated(TaskConfig, values, f"--task {name}")
    return tasks


def schema() -> str:
    """The JSON schema (draft 2020-12) of a sweep file."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "raysft sweep file"}
    return json.dumps(dialect | SweepConfig.model_json_schema() | dialect, indent=2)


def dump(config: SweepConfig) -> str:
    """YAML that `load` reads as an equal config; every default is written out."""
    return write(config.model_dump(mode="json"))


def absolute(config: SweepConfig) -> SweepConfig:
    """The sweep with its local paths made absolute: workers have a working directory of their own."""
    values = config.model_dump(mode="json")
    for loc, path in _local_paths(config):
        values = _replaced(values, loc, path)
    return SweepConfig.model_validate(values)


def absolute_paths(config: SweepConfig) -> list[str]:
    """The same as settings for `load`, so that the file runs from another folder."""
    return [f"{'.'.join(map(str, loc))}={json.dumps(path)}" for loc, path in _local_paths(config)]


def local_paths(config: SweepConfig) -> list[str]:
    """Of backbones, data and tasks: what is there, made absolute."""
    return sorted({path for loc, path in _local_paths(config) if loc != ("output",)})


def _local_paths(config: SweepConfig) -> list[tuple[Loc, str]]:
    """The place of each local path in the sweep, and the path made absolute. What is not there is a hub id."""
    found: list[tuple[Loc, Path]] = [(("output",), config.output)]
    for position, backbone in enumerate(config.backbones):
        found.append((("backbones", position, "path"), Path(backbone.path)))
        found += _sources(("backbones", position, "overrides", "data"), backbone.overrides.get("data", {}))
    found += _sources(("data",), config.data.model_dump(mode="json"))
    for name, task in config.evaluation.tasks.items():
        if isinstance(task.source, FileSource | HubSource):
            found.append((("evaluation", "tasks", name, "source", "path"), Path(task.source.path)))
    return [(loc, str(path.absolute())) for loc, path in found if loc == ("output",) or path.exists()]


def _sources(loc: Loc, data: dict[str, Any]) -> list[tuple[Loc, Path]]:
    sources = {name: data.get(name) for name in ("train", "heldout")}
    return [((*loc, name, "path"), Path(s["path"])) for name, s in sources.items() if s and "path" in s]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(str(file) for file in path.parent.glob("*.y*ml"))
        fix = did_you_mean(str(path), siblings) if siblings else "Check the path."
        raise InputError(str(path), "does not exist.", fix) from None
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text.", "A sweep file is YAML; see sweeps/ for some.") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}.", "Name a readable YAML file.") from None


def _laid_over(layers: Sequence["_Layer"]) -> Any:
    """The values of a sweep file with its overlays. Raises InputError for what is no overlay, or one alone."""
    first, *overlays = layers
    values = first.document.values
    if not isinstance(values, dict):
        return values
    if values and not {"name", "data"} & values.keys():
        fix = f"Lay it over a sweep file: raysft sweep FILE --with {first.path}"
        raise InputError(str(first.path), "has neither a name nor data, so that it is an overlay.", fix)
    for overlay in overlays:
        given = overlay.document.values
        if not isinstance(given, dict):
            raise InputError(
                f"{overlay.path} line 1", "is no mapping of keys to values.", "Write, for example, seed: 1."
            )
        named = {"name": f"{values['name']}-{overlay.path.stem}"} if "name" in values else {}
        values = merge(values, named | given)
    return values


def _booleans_refused(given: Any, taken: Any, loc: Loc = ()) -> list[Refusal]:
    """Where true or false was taken as 1 or 0, which is surely not what was meant.

    What was taken lacks a key that only led to others: the file of a task.
    """
    if isinstance(given, bool) and not isinstance(taken, bool):
        return [Refusal(loc, f"must be a number, not {str(given).lower()}.")]
    if isinstance(given, dict):
        shared = {key: value for key, value in given.items() if key in taken}
        return [r for key, value in shared.items() for r in _booleans_refused(value, taken[key], (*loc, key))]
    if isinstance(given, list) and isinstance(taken, list):
        return [r for i, value in enumerate(given) for r in _booleans_refused(value, taken[i], (*loc, i))]
    return []


def _texts_refused(given: Any, loc: Loc = ()) -> list[Refusal]:
    """What no value may hold, whatever it is for."""
    if isinstance(given, dict):
        return [r for key, value in given.items() for r in _texts_refused(value, (*loc, key))]
    if isinstance(given, list):
        return [r for i, value in enumerate(given) for r in _texts_refused(value, (*loc, i))]
    if isinstance(given, str) and "\0" in given:
        return [Refusal(loc, "holds a NUL character.", "Remove it.")]
    if isinstance(given, str) and holds_secret(given):
        return [Refusal(loc, "holds a password or token, which Ray, MLflow and files of the run would keep.", SECRETS)]
    return []


def _overrides_refused(config: SweepConfig) -> list[Refusal]:
    """What is wrong with the file as each backbone sees it."""
    found = []
    for position, backbone in enumerate(config.backbones):
        here = ("backbones", position, "overrides")
        unknown = [section for section in backbone.overrides if section not in OVERRIDABLE]
        for section in unknown:
            fix = did_you_mean(section, list(OVERRIDABLE))
            found.append(Refusal((*here, section), f"'{section}' cannot differ between backbones.", fix))
        if unknown or not backbone.overrides:
            continue
        try:
            study = config.for_backbone(backbone.name)
            found += _booleans_refused(backbone.overrides, study.model_dump(mode="json"), here)
        except ValidationError as error:
            for refusal in refusals(SweepConfig, error):
                inside = bool(refusal.loc) and refusal.loc[0] in backbone.overrides
                loc = (*here, *refusal.loc) if inside else here
                found.append(Refusal(loc, refusal.reason, refusal.fix))
    return found


# --- settings of the command line -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A `--set`: as it was typed, where it takes effect, and the value."""

    text: str
    loc: Loc
    document: Document


def _setting(values: Any, text: str) -> Setting:
    """Raises InputError for what is no setting or leads nowhere in the values."""
    place = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(place, "is not of the form key=value.", "Write, for example, --set training.steps=20.")
    return Setting(text, _resolve(values, key.split("."), place), parse(value.strip() or "null", place))


def _resolve(values: Any, keys: list[str], place: str) -> Loc:
    """Keys as they were typed -> keys and positions."""
    loc: list[str | int] = []
    found: str | int
    while keys:
        if isinstance(values, list):
            taken, found = _position(values, keys, place, dotted(loc))
        elif isinstance(values, dict) or values is None:
            taken, found = 1, keys[0]
        else:
            whole = f"Set it as a whole: --set '{dotted(loc)}={{{keys[0]}: ...}}'."
            raise InputError(place, f"'{dotted(loc)}' is {values!r} and holds no keys.", whole)
        loc.append(found)
        keys = keys[taken:]
        values = values[found] if isinstance(found, int) else (values or {}).get(found)
    return tuple(loc)


def _position(items: list[Any], keys: list[str], place: str, where: str) -> tuple[int, int]:
    """How many keys name an item of the list (names may hold dots), and its position."""
    names = [str(item.get("name")) if isinstance(item, dict) else "" for item in items]
    for taken in range(len(keys), 0, -1):
        if (name := ".".join(keys[:taken])) in names:
            return taken, names.index(name)
    if keys[0].isdecimal() and int(keys[0]) < len(items):
        return 1, int(keys[0])
    valid = [name for name in names if name] + [str(position) for position in range(len(items))]
    raise InputError(place, f"'{where}' has no '{keys[0]}'.", did_you_mean(keys[0], valid))


def _replaced(values: Any, loc: Loc, new: Any) -> Any:
    """The values with `new` at loc. What YAML shares between places (anchors) is left as it is elsewhere."""
    if not loc:
        return new
    if isinstance(values, list):
        position = loc[0]
        return [_replaced(item, loc[1:], new) if i == position else item for i, item in enumerate(values)]
    values = values or {}
    return {**values, loc[0]: _replaced(values.get(loc[0]), loc[1:], new)}


# --- places ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A sweep file, or an overlay over what comes before it."""

    path: Path
    document: Document

    @classmethod
    def read(cls, path: Path) -> "_Layer":
        return cls(path, parse(_read(path), str(path)))


@dataclass(frozen=True)
class _Places:
    layers: list[_Layer]
    settings: list[Setting]

    def refuse(self, refusal: Refusal) -> InputError:
        return InputError(self._place(refusal.loc), refusal.reason, refusal.fix)

    def _place(self, loc: Loc) -> str:
        """The last setting that replaced or made what holds loc; else the lines of the files that it comes from."""
        key = f": {dotted(loc)}" if loc else ""
        depth, layers = self._sources(loc)
        for setting in reversed(self.settings):
            shared = _shared(loc, setting.loc)
            if shared == len(setting.loc) or shared > depth:
                return f"--set {setting.text}" + (key if loc != setting.loc else "")
        below = [f" with --set {s.text}" for s in self.settings if loc and _shared(loc, s.loc) == len(loc)]
        lines = [f"{layer.path} line {layer.document.find(loc[:depth])[1]}" for layer in layers]
        return f"{' with '.join(lines)}{''.join(below[-1:])}{key}"

    def _sources(self, loc: Loc) -> tuple[int, list[_Layer]]:
        """How many keys of loc there are in the files, and the layers that the value of the last of them is from.

        Several, where each has some keys of a mapping. What is nowhere, even its first key, is the sweep file's matter.
        """
        sources = [(layer, layer.document.values) for layer in self.layers]
        for depth, key in enumerate(loc):
            found: list[tuple[_Layer, Any]] = []
            whole: Any = None
            for layer, value in sources:
                if not _holds(value, key):
                    continue
                joins = bool(found) and merges(whole, value[key])
                whole = merge(whole, value[key]) if joins else value[key]
                found = [*(found if joins else []), (layer, value[key])]
            if not found:
                return depth, [layer for layer, _ in sources] if depth else self.layers[:1]
            sources = found
        return len(loc), [layer for layer, _ in sources] if loc else self.layers[:1]


def _holds(value: Any, key: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, dict) and key in value


def _shared(a: Loc, b: Loc) -> int:
    """How many keys two places have in common from the top."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def together(path: Path | str, problems: list[InputError]) -> InputError:
    """One error for all of them."""
    if len(problems) == 1:
        return problems[0]
    listed = "".join(f"\n  {problem}" for problem in problems)
    return InputError(str(path), f"{len(problems)} errors:{listed}")
