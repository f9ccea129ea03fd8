"""YAML text with the lines that its values stand on, read as YAML 1.2: 1e-5 is a number; no, on and 12:30 are text.

PyYAML by itself reads YAML 1.1, and lets the last of several equal keys win in silence.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from raysft.errors import InputError
from raysft.refusal import Loc

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]{1,300}", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    "merge": (r"<<", "<"),
}


@dataclass(frozen=True)
class Document:
    """values: as plain Python; refused: keys that stand twice or are not text."""

    values: Any
    root: yaml.Node
    refused: list[InputError]

    def find(self, loc: Loc) -> tuple[int, int]:
        """How many keys of loc the file has, and the line (from 1) of the last of them."""
        node, line = self.root, self.root.start_mark.line
        for depth, key in enumerate(loc):
            found = _child(node, key)
            if found is None:
                return depth, line + 1
            line, node = found
        return len(loc), line + 1


def parse(text: str, place: str) -> Document:
    """The one document of a YAML text. Raises InputError, with the line, for what is not YAML."""
    try:
        loader = _Loader(text, place)
        root = loader.get_single_node()
        if root is None:
            raise InputError(place, "is empty.", "Start from one of the files in sweeps/.")
        return Document(loader.construct_document(root), root, loader.refused)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place} line {mark.line + 1}" if mark and "\n" in text else place
        raise InputError(where, f"is not YAML: {error.problem or error.context}.", _fix(str(error.problem))) from None
    except yaml.reader.ReaderError as error:
        where = f"{place} line {text.count(chr(10), 0, error.position) + 1}"
        raise InputError(where, "holds a character that YAML does not allow.", "Remove it.") from None
    except RecursionError:
        raise InputError(place, "is nested too deeply.", "A sweep file has a handful of levels.") from None


def write(values: Any) -> str:
    """YAML that `parse` reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _fix(problem: str) -> str:
    if "'\\t'" in problem:
        return "Indent with spaces, not tabs."
    if "mapping values are not allowed" in problem:
        return "Check the indentation, and put text that holds ': ' in quotes."
    if "recursive" in problem:
        return "A value cannot hold itself: use another anchor (&) there."
    if "constructor for the tag" in problem:
        return "Tags (!...) are not read here: write the plain value."
    return "Check the indentation, brackets and quotes there."


def _child(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    """Line and node of a key or list position. The last of equal keys counts: merged ones come first."""
    if isinstance(node, yaml.MappingNode):
        return next(((k.start_mark.line, v) for k, v in reversed(node.value) if k.value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line, node.value[key]
    return None


def _resolve_as_yaml_1_2(cls: type[Any]) -> type[Any]:
    cls.yaml_implicit_resolvers = {}
    for name, (pattern, first) in _SCALARS.items():
        characters = [*first, ""] if name == "null" else list(first)
        cls.add_implicit_resolver(_TAG + name, re.compile(f"(?:{pattern})$"), characters)
    return cls


@_resolve_as_yaml_1_2
class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.Node:
        """Breaks of a line that YAML would fold are written as escapes."""
        return self.represent_scalar(_TAG + "str", value, style='"' if re.search("[\x85\u2028\u2029]", value) else None)


_Dumper.add_representer(str, _Dumper.text)


@_resolve_as_yaml_1_2
class _Loader(yaml.SafeLoader):
    def __init__(self, text: str, place: str) -> None:
        super().__init__(text)
        self.place, self.numbered = place, "\n" in text
        self.refused: list[InputError] = []

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Built at once, not lazily: a mapping that holds itself is then refused by PyYAML."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                name = f"'{key.value}'" if isinstance(key, yaml.ScalarNode) else "that is a list or mapping"
                self._refuse(line, f"a key {name} is not text.", "Put it in quotes.")
            elif key.value in first:
                self._refuse(line, f"'{key.value}' is in line {first[key.value]} already.", "Keep one of the two.")
            else:
                first[key.value] = line
        self.flatten_mapping(node)
        text_keys = [(k, v) for k, v in node.value if k.tag == _TAG + "str"]
        return {key.value: self.construct_object(value, deep=True) for key, value in text_keys}

    def whole_number(self, node: yaml.ScalarNode) -> int:
        return int(node.value)

    def sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def _refuse(self, line: int, reason: str, fix: str) -> None:
        self.refused.append(InputError(f"{self.place} line {line}" if self.numbered else self.place, reason, fix))


_Loader.add_constructor(_TAG + "map", _Loader.mapping)
_Loader.add_constructor(_TAG + "seq", _Loader.sequence)
_Loader.add_constructor(_TAG + "int", _Loader.whole_number)
