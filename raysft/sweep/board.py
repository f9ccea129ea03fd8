"""The board between Tune's trial functions and the worker groups: trials are pinned to it, groups take them off.

    trial function --submit--> Board --take--> group (rank 0)
                   <-reports--       <-report--

One asynchronous actor for the groups of one study after another. It knows nothing of training; it decides what happens
when a group breaks.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

Stop = Literal["drop", "save"]
Seat = tuple[int, int]  # slot of a group, and lane in it: where one trial at a time runs
TAKE_SECONDS = 60.0  # ranks that wait for rank 0 sit in a collective, which must return before it times out
START_FAILURES = 2  # in a row, of a group that has not finished a trial since


@dataclass(frozen=True)
class Report:
    """What a group says of a trial. Every kind but "progress" ends it, for now or for good."""

    kind: Literal["progress", "finished", "dropped", "saved", "paused", "failed"]
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def ends(self) -> bool:
        return self.kind != "progress"


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet: ask again."""


@dataclass
class Entry:
    job: Any
    reports: list[Report] = field(default_factory=list)
    failures: int = 0
    cancel: Stop | None = None

    @property
    def ended(self) -> bool:
        return bool(self.reports) and self.reports[-1].ends


class Board:
    """Plain asyncio; `start_board` makes it an actor."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.running: dict[Seat, str] = {}
        self.start_failures: dict[int, int] = {}
        self.given_up: set[int] = set()
        self.slots: set[int] = set()
        self.reserved: dict[int, Any] = {}  # slot -> placement group of its workers
        self.studies = 0  # opened so far
        self.config: Any = None
        self.closed = False
        self.changed = asyncio.Condition()
        self._clear()

    def _clear(self) -> None:
        """What belongs to a study."""
        self.entries: dict[str, Entry] = {}
        self.queue: deque[str] = deque()
        self.prober: int | None = None
        self.measured: str | None = None
        self.maximise = True
        self.best: float | None = None
        self.refusal = ""
        self.over = True
        self.expected: int | None = None
        self.last = False

    # --- asked by trial functions and the driver ---

    async def open(self, config: Any, maximise: bool, expected: int | None = None, last: bool = False) -> None:
        """Begin a study, of which the groups get to know by `study`.

        expected: trials that will be submitted, each once; None where that is not known. last: no study comes after it,
        so that groups without a trial end once all have come.
        """
        self._clear()
        self.studies += 1
        self.config, self.maximise, self.over = config, maximise, False
        self.expected, self.last = expected, last
        await self._notify()

    async def end_study(self) -> None:
        """Let the groups wait for the next one. All trials have ended."""
        self.over = True
        await self._notify()

    async def submit(self, trial_id: str, job: Any) -> None:
        """Pin a trial. Asking again changes nothing while it runs, nor once it failed, which Tune tries to repeat."""
        known = self.entries.get(trial_id)
        if known and (not known.ended or known.reports[-1].kind == "failed"):
            return
        self.entries[trial_id] = Entry(job)
        self.queue.append(trial_id)
        if self.refusal:
            self._end(trial_id, Report("failed", reason=self.refusal))
        await self._notify()

    async def reports(self, trial_id: str, seen: int) -> list[Report]:
        """The reports after the first `seen`, as soon as there is one."""
        entry = self.entries[trial_id]
        await self._until(lambda: len(entry.reports) > seen)
        return entry.reports[seen:]

    async def cancel(self, trial_id: str, how: Stop = "drop") -> None:
        """Stop a trial at its next step boundary, or at once where no group has it yet. Unknown ones are ignored."""
        entry = self.entries.get(trial_id)
        if entry and not entry.ended:
            entry.cancel = how
            if trial_id in self.queue:
                self._end(trial_id, Report("dropped"))
            await self._notify()

    async def close(self, how: Stop = "drop") -> None:
        """Stop all trials and let the groups end."""
        self.closed = self.over = True
        for trial_id in list(self.entries):
            await self.cancel(trial_id, how)
        await self._notify()

    async def measurement(self) -> tuple[str | None, str]:
        """(what the first group measured, as JSON, "") or (None, why there will be none)."""
        await self._until(lambda: self.measured is not None or bool(self.refusal))
        return self.measured, self.refusal

    async def set_measurement(self, value: str) -> None:
        self.measured = value
        await self._notify()

    async def lost(self) -> None:
        """Never answers, so that whoever asked learns at once that the board has died."""
        await asyncio.Event().wait()

    # --- asked by groups ---

    async def wanted(self, slot: int, with_work: bool) -> bool:
        """Whether a group shall (still) run in this slot; with_work: only once there is a trial for it."""
        self.slots.add(slot)
        if with_work:
            await self._until(
                lambda: self._no_more() or bool(self.queue) or bool(self._trials(slot)) or self._probes(slot)
            )
        if self.closed or slot in self.given_up:
            return False
        return bool(self._trials(slot)) or not self._no_more()

    async def study(self, seen: int) -> Any:
        """(number, config) of the study after the first `seen`; Wait where there is none yet; None once closed."""
        if not await self._soon(lambda: self._no_more() or (self.studies > seen and not self.over)):
            return Wait()
        return (self.studies, self.config) if self.studies > seen and not self.over else None

    async def started(self, slot: int, reserved: Any) -> None:
        """A group has started on the resources of this placement group."""
        self.reserved[slot] = reserved

    async def left_behind(self, slot: int) -> Any:
        """The placement group that a slot's group stood on; None where none had started."""
        return self.reserved.pop(slot, None)

    async def needs_probe(self, slot: int, study: int) -> bool:
        if study != self.studies or not self._probes(slot):
            return False
        self.prober = slot
        return True

    async def take(self, seat: Seat, study: int) -> Any:
        """The study's next job; Wait where there is none yet; None once it is over.

        A seat whose group broke gets the trial back that it had.
        """
        if seat not in self.running:
            if not await self._soon(lambda: self._past(study) or bool(self.queue) or self._all_taken()):
                return Wait()
            if self._past(study) or self._all_taken():
                return None
            if not self.queue:  # another seat was faster
                return Wait()
            self.running[seat] = self.queue.popleft()
        return self.entries[self.running[seat]].job

    async def cancelled(self, trial_id: str) -> Stop:
        """Returns once the trial is to stop (or has ended), with how."""
        entry = self.entries[trial_id]
        await self._until(lambda: entry.cancel is not None or entry.ended)
        return entry.cancel or "drop"

    async def report(self, seat: Seat, trial_id: str, report: Report) -> None:
        entry = self.entries[trial_id]
        if entry.ended:
            return
        if report.ends:
            self.start_failures[seat[0]] = 0
            self._end(trial_id, report)
        else:
            entry.reports.append(report)
        await self._notify()

    async def improves(self, value: float) -> bool:
        """Whether no trial was better so far; remembers it. True for ties, of which any may be called the best."""
        better = self.best is None or (value >= self.best if self.maximise else value <= self.best)
        if better:
            self.best = value
        return better

    async def refuse(self, reason: str, study: int) -> None:
        """No group can ever run this study: fail what waits and what comes."""
        if self._past(study):
            return
        self.refusal = self.refusal or reason
        for trial_id, entry in self.entries.items():
            if not entry.ended:
                self._end(trial_id, Report("failed", reason=reason))
        await self._notify()

    async def group_broke(self, slot: int, reason: str) -> bool:
        """A group ended with an error. Returns whether to start it again."""
        broken = self._trials(slot)
        if not broken:
            self.start_failures[slot] = self.start_failures.get(slot, 0) + 1
            if self.start_failures[slot] >= max(START_FAILURES, self.max_failures):  # nodes may be lost at a start, too
                self.given_up.add(slot)
                if self.given_up >= self.slots:
                    await self.refuse(f"the workers cannot start: {reason}", self.studies)
        for trial_id in broken:
            entry = self.entries[trial_id]
            entry.failures += 1
            if entry.failures > self.max_failures:
                self._end(trial_id, Report("failed", reason=f"its workers broke {entry.failures} times: {reason}"))
        await self._notify()
        return not self.closed and slot not in self.given_up and not self.refusal

    def _probes(self, slot: int) -> bool:
        return not self.over and self.measured is None and self.prober in (None, slot)

    def _all_taken(self) -> bool:
        """Whether a group without a trial will get none any more in this study."""
        return self.expected is not None and len(self.entries) >= self.expected and not self.queue

    def _no_more(self) -> bool:
        """The same of all studies."""
        return self.closed or (self.last and self._all_taken())

    def _past(self, study: int) -> bool:
        """A group may be so slow to start that its study is over by then."""
        return self.over or study != self.studies

    def _trials(self, slot: int) -> list[str]:
        """What runs in a slot's lanes."""
        return [trial_id for seat, trial_id in self.running.items() if seat[0] == slot]

    def _end(self, trial_id: str, report: Report) -> None:
        self.entries[trial_id].reports.append(report)
        if trial_id in self.queue:
            self.queue.remove(trial_id)
        self.running = {seat: running for seat, running in self.running.items() if running != trial_id}

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _soon(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true before those who wait must hear something."""
        try:
            await asyncio.wait_for(self._until(condition), TAKE_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)


# Of the head node, on which the driver of a job runs, too: any other may be lost, and the board with it.
ON_HEAD = {"node:__internal_head__": 0.001}


def start_board(max_failures: int) -> Any:
    actor: Any = ray.remote(Board)  # Ray's stubs do not know an actor's options
    return actor.options(num_cpus=0, resources=ON_HEAD, max_concurrency=10_000).remote(max_failures)
