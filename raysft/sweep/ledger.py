"""The ledger of a study: each trial that began and how it ended, as files in the trials' own folders.

It is the truth that a resume goes by. What Tune and Optuna knew is rebuilt from it, so that a kill at any moment
loses no trial and begins none twice.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysft.config import TrialConfig
from raysft.store import Store

Status = Literal["FINISHED", "KILLED", "FAILED", "INTERRUPTED"]
BEGUN, ENDED, METRICS, PROMOTED = "trial.json", "end.json", "metrics.jsonl", "promoted.json"


@dataclass(frozen=True)
class TrialRow:
    """A trial of a study. INTERRUPTED: it began and has not ended, perhaps is paused; KILLED: it was stopped early."""

    trial_id: str
    trial: TrialConfig
    status: Status = "INTERRUPTED"
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether a resume leaves it alone. A failed one is tried again: somebody may have mended the cause."""
        return self.status in ("FINISHED", "KILLED")


class Ledger:
    """folder: of a study's trials; uri: as in Store. One process writes at a time."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.folder, self.store = folder, Store(folder, uri)

    def rows(self) -> list[TrialRow]:
        """All trials in the order in which they began."""
        return [self._row(folder) for folder in self._folders()]

    def begin(self, trial: TrialConfig) -> str:
        """Record a new trial; its id is its number."""
        trial_id = f"{len(self._folders()):04d}"
        (self.folder / trial_id).mkdir(parents=True, exist_ok=True)
        self.store.publish(self.folder / trial_id / BEGUN, trial.model_dump_json(indent=1))
        return trial_id

    def begin_again(self, trial_id: str) -> None:
        """A trial that did not end well runs again."""
        self.store.remove(self.folder / trial_id / ENDED)

    def promote(self, trial_id: str, until: int) -> None:
        """Record, before the trial goes on, to which step."""
        self.store.publish(self.folder / trial_id / PROMOTED, json.dumps({"until": until}))

    def promoted(self, trial_id: str) -> int | None:
        """The step to which the trial was promoted last; None where it never was."""
        path = self.folder / trial_id / PROMOTED
        return int(json.loads(path.read_text())["until"]) if path.exists() else None

    def end(self, row: TrialRow) -> None:
        """A stopped trial's checkpoints go with it."""
        end = {"status": row.status, "step": row.step, "reason": row.reason, "metrics": row.metrics}
        self.store.publish(self.folder / row.trial_id / ENDED, json.dumps(end, indent=1))
        if row.status == "KILLED":
            self.store.remove(self.folder / row.trial_id / "checkpoints")

    def points(self, trial_id: str) -> dict[int, dict[str, float]]:
        """step -> metrics that a trial recorded."""
        path = self.folder / trial_id / METRICS
        lines = _whole_lines(path.read_text().splitlines()) if path.exists() else []
        return {int(line.pop("step")): line for line in lines}

    def values(self, trial_id: str, metric: str) -> dict[int, float]:
        """step -> value of the evaluations that a trial recorded."""
        return {step: float(point[metric]) for step, point in self.points(trial_id).items() if metric in point}

    def _folders(self) -> list[Path]:
        begun = [path.parent for path in self.folder.glob(f"*/{BEGUN}")]
        return sorted(begun, key=lambda folder: (len(folder.name), folder.name))

    def _row(self, folder: Path) -> TrialRow:
        trial = TrialConfig.model_validate_json((folder / BEGUN).read_text())
        end = folder / ENDED
        return TrialRow(folder.name, trial, **(json.loads(end.read_text()) if end.exists() else {}))


def _whole_lines(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the last line, which a kill cut short
            continue
