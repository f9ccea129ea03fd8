"""Writes to the runs of an experiment, each of which may be repeated without doubling anything."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from raysft.redaction import redacted
from raysft.tracking.store import all_runs

Status = Literal["FINISHED", "KILLED", "FAILED"]
Point = Mapping[str, Any]

METRICS_PER_REQUEST = 1000
TEXT_LIMIT = 6000  # characters of a parameter's value


@dataclass
class Tracked:
    """A run as this process knows it."""

    name: str
    tags: dict[str, str]  # that it is found by
    params: dict[str, Any]
    parent: "Tracked | None" = None
    started: int = field(default_factory=lambda: milliseconds(time.time()))
    run_id: str = ""  # empty until it was found or made
    last: dict[str, int] = field(default_factory=dict)  # metric -> last step stored


class Runs:
    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id

    def id_of(self, run: Tracked) -> str:
        """The run's id. It is looked for before it is made: the answer to an earlier attempt may have been lost."""
        if not run.run_id:
            tags = dict(run.tags)
            if run.parent is not None:
                tags["mlflow.parentRunId"] = self.id_of(run.parent)
            if found := self._search(tags):
                run.last = {name: self._last_step(found[0], name) for name in found[0].data.metrics}
                run.run_id = found[0].info.run_id
            else:
                made = self.client.create_run(self.experiment_id, run.started, tags, run.name)
                run.run_id = made.info.run_id
        return run.run_id

    def start(self, run: Tracked, tags: Mapping[str, str] | None = None) -> None:
        """It is RUNNING and has its parameters; of those it had before, none changes."""
        stored = self.client.get_run(self.id_of(run))
        self.batch(run, params={k: v for k, v in run.params.items() if k not in stored.data.params}, tags=tags or {})
        if "stop_reason" in stored.data.tags:
            self.client.delete_tag(run.run_id, "stop_reason")
        if stored.info.status != "RUNNING":
            self.client.update_run(run.run_id, "RUNNING")

    def write(self, run: Tracked, points: Iterable[Point]) -> None:
        """Store what is new of the points, in whole requests."""
        self.id_of(run)
        last, metrics = dict(run.last), []
        for point in points:
            step, when = int(point["step"]), milliseconds(point["time"])
            for name, value in point.items():
                if name not in ("step", "time") and step > last.get(name, -1):
                    metrics.append(Metric(name, float(value), when, step))
                    last[name] = step
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            batch = metrics[start : start + METRICS_PER_REQUEST]
            self.batch(run, batch)
            run.last |= {metric.key: metric.step for metric in batch}

    def batch(
        self,
        run: Tracked,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self.client.log_batch(
            self.id_of(run),
            metrics,
            [Param(key, as_text(value)) for key, value in (params or {}).items()],
            [RunTag(key, as_text(value)) for key, value in (tags or {}).items()],
            synchronous=True,
        )

    def finish(self, run_id: str, status: Status, reason: str, when: float) -> None:
        """when: Unix seconds."""
        if reason:
            self.client.set_tag(run_id, "stop_reason", as_text(reason))
        self.client.set_terminated(run_id, status, milliseconds(when))

    def show(self, tag: str, value: str) -> None:
        """A tag of the experiment."""
        self.client.set_experiment_tag(self.experiment_id, tag, value)

    def children(self, run: Tracked) -> list[Run]:
        return self._search({"mlflow.parentRunId": self.id_of(run)})

    def _last_step(self, run: Run, name: str) -> int:
        return max(metric.step for metric in self.client.get_metric_history(run.info.run_id, name))

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs with these tags, oldest first."""
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return all_runs(self.client, [self.experiment_id], condition)


def as_text(value: Any) -> str:
    """As a parameter or tag holds it: without secrets."""
    return "none" if value is None else redacted(str(value))[:TEXT_LIMIT]


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
