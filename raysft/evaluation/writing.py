"""The contract of a generation engine, and what all engines share: when a completion ends, and what is kept of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.config import GenerationConfig
from raysft.evaluation.sampling import draw, uniforms

End = Literal["token", "stop", "length", "time"]
Progress = Callable[[int, int], None]  # completions that are done, and all of them


@dataclass(frozen=True)
class Completion:
    """tokens: the end token, where there is one, the last of them; entropy: mean over the distributions that they were
    drawn from, in nats; end: by an end token, a stop string, the token limit or the time limit.
    """

    tokens: list[int]
    entropy: float
    end: End

    @property
    def truncated(self) -> bool:
        return self.end in ("length", "time")


@dataclass(frozen=True)
class Row:
    """A completion that is wanted. problem: position of its prompt; stream: of its random numbers."""

    problem: int
    sample: int
    stream: tuple[int, int, int]


@dataclass(frozen=True)
class Asked:
    """What an engine is to write: a completion of each row. Samples of a problem lie side by side, long prompts first.

    text: the text of tokens, needed for config.stop alone.
    """

    prompts: Sequence[list[int]]
    rows: list[Row]
    config: GenerationConfig
    end_ids: frozenset[int]
    pad_id: int
    device: torch.device
    text: Callable[[list[int]], str] | None = None
    progress: Progress = lambda done, total: None

    def begin(self, rows: Sequence[Row]) -> list["Writing"]:
        """The rows that are written from now on."""
        numbers = uniforms([row.stream for row in rows], self.config.max_new_tokens).numpy()
        return [Writing(self, row, own) for row, own in zip(rows, numbers, strict=True)]


class Engine(Protocol):
    """A completion is a function of (seed, problem, sample): neither batches nor other rows change it but by round-off.

    A completion that takes longer than config.seconds ends where it is; the others go on.
    """

    def __call__(self, model: PreTrainedModel, asked: Asked) -> list[Completion]:
        """A completion of each row, in their order."""


@dataclass
class Writing:
    """A row while it is written. numbers: float64 [max_new_tokens]."""

    asked: Asked
    row: Row
    numbers: np.ndarray
    tokens: list[int] = field(default_factory=list)
    entropy: float = 0.0
    end: End | None = None
    started: float = field(default_factory=time.monotonic)

    def add(self, token: int, entropy: float) -> None:
        """What comes behind the end is not kept."""
        if self.end is not None:
            return
        self.tokens.append(token)
        self.entropy += entropy
        config = self.asked.config
        if token in self.asked.end_ids:
            self.end = "token"
        elif config.stop and self._stopped():
            self.end = "stop"
        elif len(self.tokens) == config.max_new_tokens:
            self.end = "length"
        elif config.seconds is not None and time.monotonic() - self.started > config.seconds:
            self.end = "time"

    def _stopped(self) -> bool:
        """Looked for among the last tokens: each has a byte of the text at least, but for a few that have none."""
        stop, text = self.asked.config.stop, self.asked.text
        assert text is not None  # `complete` asks for it
        tail = text(self.tokens[-(max(len(s.encode()) for s in stop) + 8) :])
        return any(s in tail for s in stop)

    def completion(self) -> Completion:
        assert self.end is not None
        return Completion(self.tokens, self.entropy / len(self.tokens), self.end)


def write_next(writings: Sequence[Writing], scores: torch.Tensor) -> torch.Tensor:
    """Draw the next token of each from its scores [rows, V] and take it in; LongTensor [rows]."""
    numbers = [w.numbers[min(len(w.tokens), len(w.numbers) - 1)] for w in writings]
    config = writings[0].asked.config
    at = torch.tensor(numbers, dtype=torch.float64, device=scores.device)
    tokens, entropies = draw(scores.float(), at, config.temperature)
    for writing, token, entropy in zip(writings, tokens.tolist(), entropies.tolist(), strict=True):
        writing.add(token, entropy)
    return tokens


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string in it, and whether there is one."""
    places = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
