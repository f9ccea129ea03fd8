"""Tracked sweeps read back from MLflow: studies and their trials, their curves and scores, and all of it as a table.

Reading makes nothing: neither a database nor an experiment that is not there.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from raysft.capability import Capability
from raysft.config import METRIC_MODES, SweepConfig
from raysft.errors import InputError, did_you_mean
from raysft.objectives import Selection
from raysft.records import read_records
from raysft.redaction import redacted
from raysft.targets import Place, place_of
from raysft.tracking import active, all_runs, objective_of, open_to_read, reading

if TYPE_CHECKING:
    import pandas as pd


RECORDS = "completions.jsonl.gz"


@dataclass(frozen=True)
class Trial:
    """A child run. objective: None where this version of raysft does not know it; metrics: the last value of each,
    and steps how many the trial had come to by then; seconds: from its start to its end, or to now while it runs.
    """

    run_id: str
    trial_id: str
    label: str
    objective: Selection | None
    role: str
    learning_rate: float
    seed: int
    quantile: float | None
    status: str
    stop_reason: str
    metrics: dict[str, float]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Study:
    """A parent run: one backbone of a sweep. trials: in the order in which they began.

    capability, config: None where they were not tracked or not by a version that this one understands; notes say so.
    earlier: studies of the same backbone in the experiment, before this one, which are left out.
    """

    uri: str
    sweep: str
    backbone: str
    run_id: str
    status: str
    capability: Capability | None
    config: SweepConfig | None
    metric: str
    mode: Literal["max", "min"]
    trials: list[Trial]
    tags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    earlier: int = 0

    def value(self, trial: Trial) -> float | None:
        """The trial's value of the study's metric; None for a trial that has not finished or has no finite one."""
        value = trial.metrics.get(self.metric, math.nan)
        return value if trial.status == "FINISHED" and math.isfinite(value) else None

    def error(self, trial: Trial) -> float | None:
        """The standard error of that value over problems, where it is known."""
        error = trial.metrics.get(f"{self.metric}_se", math.nan)
        return error if math.isfinite(error) else None

    def compared(self) -> list[Trial]:
        """Trials that can be compared with each other by `value`, best first; those of the confirm stage are apart."""
        known = [t for t in self.trials if t.role != "confirm" and self.value(t) is not None]
        sign = -1 if self.mode == "max" else 1
        return sorted(known, key=lambda t: sign * (self.value(t) or 0.0))


@dataclass(frozen=True)
class Scores:
    """Of one task, from a trial's records. problems: their numbers; values: [problems, samples]."""

    problems: list[int]
    values: np.ndarray


def studies(targets: Sequence[str | Path], tracking_uri: str | None = None) -> list[Study]:
    """The newest study of each backbone of each target, each once.

    A target is a sweep file, a sweep's output folder, or the name of an MLflow experiment; the last is looked for at
    tracking_uri, else MLFLOW_TRACKING_URI, else in ./runs. Raises InputError for what is not there.
    """
    found = [study for target in targets for study in _studies(place_of(str(target), tracking_uri))]
    return list({study.run_id: study for study in found}.values())


def history(study: Study, trial: Trial, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, ascending, and the metric's values there: [points] each; none for a metric that was never logged."""
    with reading(study.uri):
        points = MlflowClient(study.uri).get_metric_history(trial.run_id, metric)
    last = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
    steps = sorted(last)
    return np.array(steps, dtype=int), np.array([last[step] for step in steps], dtype=float)


def scores(study: Study, trial: Trial) -> dict[str, Scores]:
    """Task (or `generation`) -> the scores of a trial's answers; empty where it recorded none."""
    client = MlflowClient(study.uri)
    with reading(study.uri), tempfile.TemporaryDirectory() as folder:
        if RECORDS not in [file.path for file in client.list_artifacts(trial.run_id)]:
            return {}
        records = read_records(Path(client.download_artifacts(trial.run_id, RECORDS, folder)))
    return _by_task(records, f"records of trial {trial.trial_id} ({trial.label})")


def frame(*targets: str | Path, tracking_uri: str | None = None) -> "pd.DataFrame":
    """One row a trial of the targets' studies: what it was, and the last value of each metric.

    Columns: sweep, backbone, capability, trial_id, run_id, label, objective, its parameters (exponent, threshold,
    keep, ...), learning_rate, seed, role, quantile, status, stop_reason, steps, seconds, then the metrics.
    """
    import pandas as pd

    rows = [_row(study, trial) for study in studies(targets, tracking_uri) for trial in study.trials]
    return pd.DataFrame(rows)


# --- what lies there ------------------------------------------------------------------------------------------------


def _studies(place: Place) -> list[Study]:
    client = open_to_read(place.uri, place.fix)
    what = f"MLflow experiment '{place.name}' at {redacted(place.uri)}"
    with reading(place.uri):
        experiment = client.get_experiment_by_name(place.name)
        if experiment is None:
            names = [e.name for e in client.search_experiments() if e.name != "Default"]
            raise InputError(what, "does not exist.", did_you_mean(place.name, names) if names else place.fix)
        runs = all_runs(client, [active(experiment).experiment_id])
    children: dict[str, list[Run]] = {}
    parents: dict[str, list[Run]] = {}
    for run in runs:
        if "raysft.trial_id" in run.data.tags:
            children.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
        elif "raysft.study" in run.data.tags:
            parents.setdefault(run.data.params.get("backbone", run.info.run_name), []).append(run)
    if not parents:
        raise InputError(what, "holds no sweep of raysft.", "Name the experiment that a sweep file's name gave it.")
    found = []
    for same in parents.values():
        meant = [run for run in same if run.data.tags.get("raysft.study_id") in place.ids] or same
        trials = sorted(map(trial_of, children.get(meant[-1].info.run_id, [])), key=lambda trial: trial.trial_id)
        found.append(_study(client, place, meant[-1], trials, earlier=len(meant) - 1))
    return found


def _study(client: MlflowClient, place: Place, run: Run, trials: list[Trial], earlier: int) -> Study:
    tags, notes = run.data.tags, list[str]()
    capability = config = None
    settings: Any = None
    try:
        settings = yaml.safe_load(_text(client, run.info.run_id, "config.yaml") or "null")
        config = SweepConfig.model_validate(settings)
    except (yaml.YAMLError, ValidationError):
        was = tags.get("version/raysft", "unknown")
        notes.append(f"Its config.yaml is missing or of another version of raysft ({was}), so settings are unknown.")
    try:
        capability = Capability.from_json(_text(client, run.info.run_id, "probe.json") or "null")
    except (TypeError, ValueError):
        notes.append("Its probe.json is missing or of another version of raysft, so the capability is unknown.")
    metric = _metric(settings, trials)
    return Study(
        uri=place.uri,
        sweep=place.name,
        backbone=run.data.params.get("backbone", run.info.run_name),
        run_id=run.info.run_id,
        status=run.info.status,
        capability=capability,
        config=config,
        metric=metric,
        mode=METRIC_MODES.get(metric, "max"),
        trials=trials,
        tags=tags,
        notes=notes,
        earlier=earlier,
    )


def _text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """A text artifact; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, name, folder)).read_text()
        except (MlflowException, OSError):
            return None


def _metric(settings: Any, trials: list[Trial]) -> str:
    """What the search went by, also where the rest of its settings is not understood."""
    search = settings.get("search") if isinstance(settings, dict) else None
    if isinstance(search, dict) and isinstance(named := search.get("metric"), str):
        return named
    return "eval/accuracy" if any("eval/accuracy" in trial.metrics for trial in trials) else "eval/nll"


def trial_of(run: Run) -> Trial:
    """A child run."""
    params, tags = run.data.params, run.data.tags
    objective = objective_of(params)
    points = run.to_proto().data.metrics  # unlike run.data.metrics with their steps
    ended = run.info.end_time or time.time() * 1000
    return Trial(
        run_id=run.info.run_id,
        trial_id=tags["raysft.trial_id"],
        label=objective.label() if objective else run.info.run_name,
        objective=objective,
        role=tags.get("role", ""),
        learning_rate=_number(params.get("learning_rate")) or math.nan,
        seed=int(_number(params.get("seed")) or 0),
        quantile=_number(tags.get("quantile")),
        status=run.info.status,
        stop_reason=tags.get("stop_reason", ""),
        metrics=dict(run.data.metrics),
        steps=max((point.step for point in points), default=0),
        seconds=max(0.0, (ended - run.info.start_time) / 1000),
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _by_task(records: list[dict[str, Any]], place: str) -> dict[str, Scores]:
    tasks: dict[str, dict[int, list[float]]] = {}
    for record in records:
        tasks.setdefault(record["task"], {}).setdefault(record["problem"], []).append(float(record["score"]))
    for task, problems in tasks.items():
        if len({len(samples) for samples in problems.values()}) > 1:
            raise InputError(place, f"problems of {task} have different numbers of samples.")
    return {task: Scores(list(problems), np.array(list(problems.values()))) for task, problems in tasks.items()}


def _row(study: Study, trial: Trial) -> dict[str, Any]:
    objective = trial.objective.model_dump(exclude_none=True) if trial.objective else {}
    own = {name: objective.get(name, math.nan) for name in ("exponent", "threshold", "upper", "keep")}
    own |= {name: value for name, value in objective.items() if name not in ("type", "threshold_unit")}
    return {
        "sweep": study.sweep,
        "backbone": study.backbone,
        "capability": study.capability.mean_probability if study.capability else math.nan,
        "trial_id": trial.trial_id,
        "run_id": trial.run_id,
        "label": trial.label,
        "objective": objective.get("type"),
        **own,
        "learning_rate": trial.learning_rate,
        "seed": trial.seed,
        "role": trial.role,
        "quantile": math.nan if trial.quantile is None else trial.quantile,
        "status": trial.status,
        "stop_reason": trial.stop_reason,
        "steps": trial.steps,
        "seconds": trial.seconds,
        **trial.metrics,
    }
