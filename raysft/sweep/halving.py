"""Successive halving by promotion (ASHA, arXiv 1810.05934, Algorithm 2), as bookkeeping: who may go on, and how far.

A searched trial trains to a rung (grace_period x reduction_factor^k steps) and is paused there. It is promoted, once
from each rung, while it is among the best 1/n of all that reached the rung. Two things differ from the paper:

- No more than 1/n of the searched trials of a rung are ever promoted from it. The paper's count grows with every trial
  that was the best for a while; so bounded, K rungs cost at most 1 + (K - 1)(n - 1)/n times what the first alone does.
- At least one is promoted from each rung: where the study would end otherwise, the best of its highest rung goes on,
  until one has run to its end. None replaces a promoted trial that failed; a resume repeats that one.

Baselines (and other given trials) are never paused, since results are compared with them. They count in the rungs.
"""

from collections import defaultdict

from raysft.config import AshaConfig


class Halving:
    """Knows trials by the ledger's ids, of which the smaller wins a tie."""

    def __init__(self, asha: AshaConfig, maximise: bool) -> None:
        self.first, self.factor, self.sign = asha.grace_period, asha.reduction_factor, 1 if maximise else -1
        self.rungs: dict[int, dict[str, float]] = defaultdict(dict)  # step -> trial -> score, of which more is better
        self.sent: dict[str, int] = {}  # searched trial -> the rung that it was last sent to
        self.paused: set[str] = set()

    def begin(self, trial_id: str, until: int | None = None) -> None:
        """A searched trial. until: the rung that it had been promoted to before an interruption."""
        self.sent[trial_id] = until or self.first

    def record(self, trial_id: str, step: int, value: float) -> None:
        """An evaluation of any trial; only those at rungs count. A value that is no number is the worst."""
        rung = self.first
        while rung < step:
            rung *= self.factor
        if rung == step:
            self.rungs[rung][trial_id] = self.sign * value if value == value else float("-inf")

    def pause(self, trial_id: str) -> None:
        """A searched trial has reached its rung, where its value is on record."""
        self.paused.add(trial_id)

    def promote(self) -> str | None:
        """The trial that goes on now, of the highest rung where one may."""
        return next((self._send(t) for r in sorted(self.rungs, reverse=True) if (t := self._promotable(r))), None)

    def rescue(self) -> str | None:
        """The trial that goes on because nothing else would: the best of the highest rung, if none left that one."""
        highest = max((self.sent[t] for t in self.paused), default=0)
        ranked = self._ranked(highest)
        if any(self.sent.get(t, 0) > highest for t in ranked):
            return None
        return next((self._send(t) for t in ranked if t in self.paused), None)

    def _promotable(self, rung: int) -> str | None:
        ranked = self._ranked(rung)
        reached = [self.sent[t] for t in ranked if t in self.sent]
        if sum(sent > rung for sent in reached) >= len(reached) // self.factor:
            return None
        best = ranked[: len(ranked) // self.factor]
        return next((t for t in best if t in self.paused and self.sent[t] == rung), None)

    def _ranked(self, rung: int) -> list[str]:
        scores = self.rungs.get(rung, {})
        return sorted(scores, key=lambda t: (-scores[t], t))

    def _send(self, trial_id: str) -> str:
        self.paused.discard(trial_id)
        self.sent[trial_id] *= self.factor
        return trial_id
