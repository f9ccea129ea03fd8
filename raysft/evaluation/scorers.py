"""The contract of a scorer, and the one way to make one. A scorer is a small file that registers itself."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from raysft.config import GenerationConfig, Source
from raysft.data.sources import Example
from raysft.errors import InputError, did_you_mean

_REGISTRY: dict[str, type["Scorer"]] = {}


@dataclass(frozen=True)
class Scored:
    """score: in [0, 1]; answer: what was taken from the completion, None where nothing was found."""

    score: float
    answer: str | None


class Scorer(ABC):
    """Judges completions of one source's problems."""

    def __init__(self, config: GenerationConfig, source: Source) -> None:
        self.pattern = re.compile(config.answer_pattern) if config.answer_pattern is not None else None
        self.source = source

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raises InputError where no completion of this problem could be scored."""

    @abstractmethod
    def score(self, completion: str, example: Example) -> Scored:
        """Never raises, whatever a model wrote. completion: its text without the end token."""

    def answer(self, text: str) -> str | None:
        """The stripped text, or with answer_pattern its last match that is not empty; of a match the first group."""
        if self.pattern is None:
            return text.strip()
        found = [_captured(match) for match in self.pattern.finditer(text)]
        return next((answer for answer in reversed(found) if answer), None)

    def reference(self, example: Example) -> str:
        """The reference's answer. Raises InputError where answer_pattern does not match it."""
        answer = self.answer(example.response)
        if answer is None:
            pattern = self.pattern.pattern if self.pattern else ""
            raise InputError(
                example.origin,
                f"the reference '{shortened(example.response)}' has no match of answer_pattern '{pattern}'.",
                "Change evaluation.generation.answer_pattern, or the reference.",
            )
        return answer


def register(name: str) -> Callable[[type[Scorer]], type[Scorer]]:
    def add(cls: type[Scorer]) -> type[Scorer]:
        _REGISTRY[name] = cls
        return cls

    return add


def build_scorer(config: GenerationConfig, source: Source) -> Scorer:
    """The scorer that config names, for problems of `source`. Raises InputError for an unknown name."""
    if config.scorer not in _REGISTRY:
        raise InputError(f"scorer '{config.scorer}'", "is unknown.", did_you_mean(config.scorer, list(_REGISTRY)))
    return _REGISTRY[config.scorer](config, source)


def check_references(scorer: Scorer, examples: list[Example]) -> None:
    """Raises InputError, naming the origin, for the first problem that cannot be scored."""
    for example in examples:
        scorer.check(example)


def shortened(text: str, limit: int = 60) -> str:
    """At most `limit` characters of the text's end, on one line: answers stand at the end."""
    line = " ".join(text.split())
    return line if len(line) <= limit else "... " + line[-limit:]


def _captured(match: re.Match[str]) -> str:
    groups = (group for group in match.groups() if group is not None)
    return next(groups, match[0]).strip()
