"""Where a trial's time goes: seconds of each phase, as shares of the time since it began."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

OPEN_SPANS = 4096  # spans of a GPU that may wait to be read: reading waits for its work


class Clock:
    """Phases may nest: the inner one's time is not the outer one's. What is in no phase is waiting and book-keeping.

    on_gpu: phases are timed by events in the GPU's own stream, because Python runs ahead of it; nothing waits for them
    until `shares` is called.
    """

    def __init__(self, on_gpu: bool = False) -> None:
        self.on_gpu = on_gpu
        self.seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._began = time.perf_counter()
        self._last = self._now()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._book()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._book()
            self._phases.pop()

    def shares(self) -> dict[str, float]:
        """`time/PHASE` of each phase so far, in [0, 1], and `time/seconds` since the clock began."""
        self._settle()
        total = time.perf_counter() - self._began
        return {f"time/{phase}": seconds / total for phase, seconds in self.seconds.items()} | {"time/seconds": total}

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _book(self) -> None:
        """Give the time since the last call to the innermost phase."""
        now = self._now()
        if self._phases:
            self._spans.append((self._phases[-1], self._last, now))
        self._last = now
        if len(self._spans) > OPEN_SPANS:
            self._settle()

    def _settle(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        for phase, start, end in self._spans:
            seconds = start.elapsed_time(end) / 1000 if self.on_gpu else end - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self._spans.clear()
