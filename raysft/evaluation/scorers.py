"""The contract of a scorer, and the one way to make one. A scorer is a small file that registers itself."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raysft.config import GenerationConfig, Source
from raysft.data.problems import last_match
from raysft.data.sources import Example
from raysft.errors import InputError, did_you_mean
from raysft.evaluation.pool import TIMEOUT, Verdict

_REGISTRY: dict[str, type["Scorer"]] = {}


@dataclass(frozen=True)
class Scored:
    """score: in [0, 1]; answer: what was taken from the completion, None where nothing was found.

    how: by which rule it was found, or `timeout`; others: the other scores of a scorer with several, by name.
    """

    score: float
    answer: str | None
    how: str = ""
    others: dict[str, float] = field(default_factory=dict)


def scored(answer: str, how: str, verdict: Verdict) -> Scored:
    """Of an answer that a process judged."""
    return Scored(0.0, answer, TIMEOUT) if verdict == TIMEOUT else Scored(verdict, answer, how)


class Scorer(ABC):
    """Judges completions of one source's problems."""

    def __init__(self, config: GenerationConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.patterns = [re.compile(pattern) for pattern in config.patterns]

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raises InputError where no completion of this problem could be scored."""

    @abstractmethod
    def score(self, completion: str, example: Example) -> Scored:
        """Never raises, whatever a model wrote. completion: its text without the end token."""

    def score_all(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Scored]:
        """`score` of each, for scorers that judge many at once."""
        return [self.score(completion, example) for completion, example in zip(completions, examples, strict=True)]

    def answer(self, text: str) -> str | None:
        """The stripped text, or the last match of the first pattern that has one."""
        if not self.patterns:
            return text.strip()
        return next((found for pattern in self.patterns if (found := last_match(pattern, text))), None)

    def reference(self, example: Example) -> str:
        """The reference's answer. Raises InputError where answer_pattern does not match it."""
        answer = self.answer(example.response)
        if answer is None:
            raise InputError(
                example.origin,
                f"the reference '{shortened(example.response)}' has no match of answer_pattern "
                f"{' or '.join(repr(pattern.pattern) for pattern in self.patterns)}.",
                "Change answer_pattern (of evaluation.generation, or of the task), or the reference.",
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
