"""Pydantic's validation errors in plain words: which key, what is wrong with it, what to do about it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raysft.errors import did_you_mean

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Refusal:
    """What is wrong at `loc`, the keys and list positions that lead to a value (of a missing key: to its place)."""

    loc: Loc
    reason: str
    fix: str = ""


def refusals(model: type[BaseModel], error: ValidationError) -> list[Refusal]:
    """One refusal for each thing that is wrong. Of a union only the branch that the value means is spoken of."""
    found = [_Found.locate(model, details) for details in error.errors(include_url=False)]
    return [_worded(model, f) for f in found if f.meant(found)]


def dotted(loc: Sequence[str | int]) -> str:
    """`backbones[0].path`"""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).removeprefix(".")


# --- where an error is ----------------------------------------------------------------------------------------------


_WRONG_KIND = ("_type", "_parsing", "literal_error")  # endings of errors of a value that is not of a branch at all


@dataclass(frozen=True)
class _Found:
    """An error with its loc freed of the names that pydantic gives to the branches of unions.

    members: the types that the value may have; owner, field: the model that holds the key, and what it says of it;
    branch: where a union lies on the way (loc and the type taken); whole: the error is about the branch as such.
    """

    details: Any
    loc: Loc
    members: list[Any]
    owner: type[BaseModel] | None = None
    field: FieldInfo | None = None
    branch: tuple[Loc, Any] | None = None
    whole: bool = False

    @classmethod
    def locate(cls, model: type[BaseModel], details: Any) -> "_Found":
        loc: list[str | int] = []
        members: list[Any] = [model]
        owner, field, branch, whole = None, None, None, False
        for key in details["loc"]:
            if len(members) > 1:
                members = [_named(members, str(key))]
                branch, whole = (tuple(loc), members[0]), True
                continue
            owner, field, whole = None, None, False
            if _is_model(members[0]):
                owner = members[0]
                field = owner.model_fields.get(str(key))
                members = _members(field.annotation) if field else [Any]
            else:
                members = _members(_item(members[0], key))
            loc.append(key)
        return cls(details, tuple(loc), members, owner, field, branch, whole)

    def meant(self, everything: list["_Found"]) -> bool:
        """Whether the value means this branch: the only one tried, or the one of its kind, or else the scalar one."""
        if self.branch is None:
            return True
        union = self.branch[0]
        tried = [f for f in everything if f.branch and f.branch[0] == union]
        misfits = [f.branch for f in tried if f.whole and f.details["type"].endswith(_WRONG_KIND)]
        fits = [f.branch for f in tried if f.branch not in misfits]
        if fits:
            return self.branch in fits
        scalars = [b for b in misfits if b and not _is_model(b[1]) and get_origin(b[1]) is not list]
        return self.branch == (scalars or misfits)[0]


_TELLS_APART = ("kind", "type")


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation allows, null aside."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [m for a in get_args(annotation) for m in _members(a) if a is not type(None)]
    return [annotation]


def _named(members: list[Any], tag: str) -> Any:
    """The member of a union that pydantic calls `tag`: by its discriminator, its class or its schema."""
    for member in members:
        if _is_model(member) and (tag == _kind(member) or member.__name__ in tag):
            return member
        if get_origin(member) is list and tag.startswith("list"):
            return member
    return next(m for m in members if not _is_model(m) and get_origin(m) is not list)


def _kind(member: type[BaseModel]) -> str | None:
    """The value of the key that tells the members of a union apart."""
    key = next((key for key in _TELLS_APART if key in member.model_fields), None)
    return member.model_fields[key].default if key else None


def _item(annotation: Any, key: str | int) -> Any:
    """The type of what a container holds under `key`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(key, int):
        return arguments[min(key, len(arguments) - 1)]
    return arguments[-1] if arguments else Any


# --- what is wrong there --------------------------------------------------------------------------------------------


_MUST_BE: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"below {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "int_type": lambda c: "a whole number",
    "int_parsing": lambda c: "a whole number",
    "int_parsing_size": lambda c: "a smaller number",
    "int_from_float": lambda c: "a whole number",
    "float_type": lambda c: "a number",
    "float_parsing": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "bool_type": lambda c: "true or false",
    "bool_parsing": lambda c: "true or false",
    "string_type": lambda c: "text",
    "path_type": lambda c: "a path",
    "model_type": lambda c: "a mapping of keys to values",
    "model_attributes_type": lambda c: "a mapping of keys to values",
    "dict_type": lambda c: "a mapping of keys to values",
    "list_type": lambda c: "a list",
    "tuple_type": lambda c: "a list",
    "too_short": lambda c: f"a list of at least {c['min_length']}",
    "too_long": lambda c: f"a list of at most {c['max_length']}",
    "missing_argument": lambda c: "longer",
    "string_too_short": lambda c: "text of at least one character",
    "string_too_long": lambda c: f"text of at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: (
        "made of letters, digits, '.', '_' and '-', beginning with a letter or digit and not ending with '.'"
    ),
}


def _worded(model: type[BaseModel], found: _Found) -> Refusal:
    details, loc = found.details, found.loc
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        return Refusal(loc, f"'{loc[-1]}' is not a key here.", _nearest_key(model, found, str(loc[-1])))
    if kind == "missing":
        about = found.field.description if found.field else None
        return Refusal(loc, f"'{loc[-1]}' is missing.", f"Add it: {about}." if about else "Add it.")
    if kind.startswith("union_tag"):
        key = details["ctx"]["discriminator"].strip("'")
        if key not in given and (misspelt := _misspelt(key, given, found.members)) is not None:
            return Refusal((*loc, misspelt), f"'{misspelt}' is not a key here.", did_you_mean(misspelt, [key]))
        return _wrong_choice((*loc, key), given.get(key), [str(_kind(m)) for m in found.members])
    if kind == "literal_error":
        choices = [c for m in found.members if get_origin(m) is Literal for c in get_args(m)]
        return _wrong_choice(loc, given, choices, _alternatives(found) or _default(found))
    if kind == "value_error":
        reason = str(details["ctx"]["error"]).rstrip(".") + "."
        return Refusal(loc or _mentioned(model, reason), reason)
    if kind in _MUST_BE:
        reason = f"must be {_MUST_BE[kind](details.get('ctx', {}))}, not {_shown(given)}."
        quote = kind == "string_type" and isinstance(given, int | float)
        return Refusal(loc, reason, "Put it in quotes." if quote else _alternatives(found) or _default(found))
    return Refusal(loc, details["msg"] + ".")


def _wrong_choice(loc: Loc, given: Any, choices: list[Any], fix: str = "") -> Refusal:
    *others, last = [_shown(c) for c in choices]
    valid = f"{', '.join(others)} or {last}" if others else last
    if given is None and loc[-1] in _TELLS_APART:
        return Refusal(loc, f"'{loc[-1]}' is missing.", f"Set it to {valid}.")
    near = did_you_mean(str(given), [str(c) for c in choices])
    return Refusal(loc, f"must be {valid}, not {_shown(given)}.", near if near.startswith("Did") else fix)


def _nearest_key(model: type[BaseModel], found: _Found, key: str) -> str:
    """The key that was meant: one of the same mapping, or the same one in the section where it belongs."""
    fix = did_you_mean(key, list(found.owner.model_fields)) if found.owner else ""
    if fix.startswith("Did"):
        return fix
    sections = [name for name, f in model.model_fields.items() for m in _members(f.annotation) if _has(m, key)]
    return f"It is a key of {' and of '.join(sections)}." if sections else fix


def _misspelt(key: str, given: dict[str, Any], members: list[Any]) -> str | None:
    """The given key that may have been meant as `key`: none that any member of the union has."""
    unknown = [name for name in given if not any(_has(member, name) for member in members)]
    return next((name for name in unknown if did_you_mean(name, [key]).startswith("Did")), None)


def _has(member: Any, key: str) -> bool:
    return _is_model(member) and key in member.model_fields


_NAMES: dict[Any, str] = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def _alternatives(found: _Found) -> str:
    """What else a union would take, where the value was of no branch."""
    if found.branch is None or not found.whole or found.field is None:
        return ""
    words = []
    for member in _members(found.field.annotation):
        if _is_model(member):
            required = [name for name, field in member.model_fields.items() if field.is_required()]
            words.append("a range {" + ", ".join(f"{name}: ..." for name in required) + "}")
        elif get_origin(member) is list:
            words.append("a list")
        else:
            words.append(_NAMES.get(member) or _shown(get_args(member)[0]))
    return f"Give {' or '.join(reversed(words))}."


def _default(found: _Found) -> str:
    if found.field is None or found.field.is_required():
        return ""
    default = found.field.get_default(call_default_factory=True, validated_data={})
    return "Leave the key out for its defaults." if _is_model(type(default)) else f"The default is {_shown(default)}."


def _mentioned(model: type[BaseModel], text: str) -> Loc:
    """The first key that a message about the whole file speaks of."""
    for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", text):
        keys: list[str | int] = word.split(".")
        if keys[0] in model.model_fields:
            return tuple(keys)
    return ()


def _shown(value: Any) -> str:
    """The value as a sweep file would have it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        items = ", ".join(map(_shown, value))
        return f"[{items}]" if len(items) < 40 else f"a list of {len(value)}"
    text = f"'{value}'" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
