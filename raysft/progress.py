"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysft.config import SweepConfig, TrialConfig

if TYPE_CHECKING:
    from raysft.sweep.ledger import TrialRow

SHOWN = 14  # trials in the live table


@dataclass
class Line:
    """One trial as it is shown. seconds: that it has run, up to `started` while it runs."""

    trial: TrialConfig
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    step: int = 0
    loss: float | None = None
    value: float | None = None
    status: str = "running"

    def elapsed(self) -> float:
        return self.seconds + (time.monotonic() - self.started if self.status == "running" else 0.0)


class Progress:
    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self.lines: dict[str, Line] = {}
        self.total = self.slots = 0
        self.config: SweepConfig | None = None
        self.head = ""

    def study(self, config: SweepConfig, total: int, slots: int) -> None:
        """A backbone's study begins."""
        self.config, self.total, self.slots = config, total, slots
        self.lines = {}
        self.head = f"{config.backbone.name}: {total} trials, {slots} at once"
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._render)
            self.live.start()
        else:
            self._say(f"{self.head}; workers start, the base model is probed")

    def finished_earlier(self, backbone: str) -> None:
        """A study that a resumed sweep has nothing left to do for."""
        self._say(f"{backbone}: finished earlier")

    def capability(self, mean_probability: float) -> None:
        self.head += f", capability {mean_probability:.3f}"
        if not self.live:
            self._say(f"{self._name()}: capability {mean_probability:.3f} (mean probability of the training targets)")

    def note(self, text: str) -> None:
        """Something about the study that the user should know."""
        if self.live:
            self.head += f"\n{text}"
        else:
            self._say(f"{self._name()}: {text}")

    def trial_started(self, trial_id: str, trial: TrialConfig) -> None:
        """It is new, or goes on where it was paused; the table shows it last."""
        line = self.lines.pop(trial_id, None) or Line(trial)
        if line.status == "paused" and not self.live:
            self._say(f"{self._name()} {self._done()}/{self.total} {trial.objective.label()}: goes on")
        line.status, line.started = "running", time.monotonic()
        self.lines[trial_id] = line

    def trial_paused(self, trial_id: str) -> None:
        """It waits at a rung."""
        line = self.lines[trial_id]
        line.seconds, line.status = line.elapsed(), "paused"
        if not self.live:
            value = "" if line.value is None else f" {self._metric()} {line.value:.4f}"
            what = f"{line.trial.objective.label()}: paused at step {line.step}{value}"
            self._say(f"{self._name()} {self._done()}/{self.total} {what}")

    def trial_known(self, row: "TrialRow") -> None:
        """A trial that had ended before the study was resumed."""
        line = Line(row.trial, status=row.status.lower(), step=row.step, value=row.metrics.get(self._metric()))
        self.lines[row.trial_id] = line
        if not self.live:
            self._say(
                f"{self._name()} {self._done()}/{self.total} {row.trial.objective.label()}: {line.status} earlier"
            )

    def trial_moved(self, trial_id: str, point: dict[str, float]) -> None:
        """point: the newest line of the trial's metrics."""
        if line := self.lines.get(trial_id):
            line.step, line.loss = int(point["step"]), point.get("train/loss")
            line.value = point.get(self._metric(), line.value)

    def trial_ended(self, row: "TrialRow") -> None:
        line = self.lines[row.trial_id]
        line.seconds, line.status = line.elapsed(), row.status.lower()
        line.value = row.metrics.get(self._metric(), line.value)
        if not self.live:
            value = "" if line.value is None else f" {self._metric()} {line.value:.4f}"
            left = f", {self._left()} left" if self._left() else ""
            note = f" ({row.reason})" if row.reason else ""
            what = f"{line.trial.objective.label()}: {line.status}{note}{value}, {line.seconds:.0f} s"
            self._say(f"{self._name()} {self._done()}/{self.total} {what}{left}")

    def refresh(self) -> None:
        if self.live:
            self.live.refresh()

    def ended(self, interrupted: bool) -> None:
        """The study is over; its table stays on the screen."""
        if self.live:
            self.live.refresh()
            self.live.stop()
            self.live = None
        elif interrupted:
            self._say(f"{self._name()}: interrupted")

    def _say(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, soft_wrap=True, markup=False)

    def _name(self) -> str:
        return self.config.backbone.name if self.config else ""

    def _metric(self) -> str:
        return self.config.search.metric if self.config else ""

    def _done(self) -> int:
        return sum(line.status not in ("running", "paused") for line in self.lines.values())

    def _best(self) -> Line | None:
        sign = 1 if self.config and self.config.search.mode == "max" else -1
        """Of the search: what confirms it is judged on other problems."""
        searched = [line for line in self.lines.values() if line.trial.role != "confirm"]
        done = [line for line in searched if line.status == "finished" and line.value is not None]
        return max(done, key=lambda line: sign * (line.value or 0.0), default=None)

    def _left(self) -> str:
        """Time left by the mean duration of the trials that ended now; with halving that says nothing of the rest."""
        if self.config and self.config.search.asha:
            return ""
        timed = [line.seconds for line in self.lines.values() if line.status != "running" and line.seconds]
        if not timed or self._done() == self.total:
            return ""
        seconds = sum(timed) / len(timed) * (self.total - self._done()) / max(1, self.slots)
        return duration(seconds)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("objective", "step", "train/loss", self._metric(), "time", "status"):
            table.add_column(name, justify="left" if name in ("objective", "status") else "right")
        best = self._best()
        for line in list(self.lines.values())[-SHOWN:]:
            seconds = line.elapsed()
            style = "bold green" if line is best else "red" if line.status == "failed" else ""
            table.add_row(
                line.trial.objective.label(),
                str(line.step),
                "" if line.loss is None else f"{line.loss:.4f}",
                "" if line.value is None else f"{line.value:.4f}",
                f"{seconds:.0f} s" if seconds else "earlier",
                line.status,
                style=style,
            )
        foot = f"{self._done()}/{self.total} done"
        if best:
            foot += f"; best so far: {best.trial.objective.label()} ({best.value:.4f})"
        if self._left():
            foot += f"; about {self._left()} left"
        return Group(Text(self.head, style="bold"), table, Text(foot))


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 50 s, 3 min, 1.6 h."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
