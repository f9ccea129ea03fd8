"""What is written to MLflow, and only in the driver's process: one writer for each sweep. `results` reads it back.

Experiment = sweep; parent run = one backbone's study; child run = one trial. Every write may be repeated without
doubling anything, so a write that MLflow does not take is kept and made later: after set-up, no failure of tracking
stops the training.
"""

import json
import logging
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

# Retries are this module's: MLflow's own would hold the sweep up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import sqlalchemy
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from raysft import __version__
from raysft.config import ReasoningGymSource, Source, SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.records import as_table, read_records
from raysft.redaction import redacted
from raysft.spool import Spool, reason_of

for _name in ("mlflow", "alembic"):  # what they would say reaches this module as exceptions, and is worded here
    logging.getLogger(_name).setLevel(logging.CRITICAL)

Status = Literal["FINISHED", "KILLED", "FAILED"]
Point = Mapping[str, Any]

STUDY_ID = "mlflow-study"  # in a study's folder, the file with the id that its parent run bears
TABLE = "completions.json"  # what MLflow's UI shows of the records
METRICS_PER_REQUEST = 1000
TEXT_LIMIT = 6000  # characters of a parameter's value
LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "mlflow", "optuna")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SET_UP_SECONDS = 120.0  # that a first use waits for another process's
END_SECONDS = 30.0  # that the end of a study waits for an MLflow that does not answer

OPENS_AS = {"mlflow.experimentKind": "custom_model_development"}  # the UI's pages for training runs

FIX = (
    "Correct tracking.uri or start its server (mlflow server --host 127.0.0.1), or leave tracking.uri out: "
    "runs then go to sqlite under the output folder."
)


def tracking_uri(config: SweepConfig) -> str:
    """Where the runs go: `tracking.uri`, or sqlite under the output folder."""
    return config.tracking.uri or default_uri(config.output)


def default_uri(output: Path) -> str:
    """The sqlite that an output folder has."""
    return f"sqlite:///{output.resolve() / 'mlflow.db'}"


def ui_command(config: SweepConfig) -> str:
    """The command that opens MLflow's UI on the runs of this sweep; the address, where a server shows them itself."""
    uri = tracking_uri(config)
    if not _is_database(uri):
        return redacted(uri)
    program = ["mlflow"] if shutil.which("mlflow") else [sys.executable, "-m", "mlflow"]
    return shlex.join([*program, "ui", "--backend-store-uri", redacted(uri), "--host", "127.0.0.1"])


class Tracking:
    """The experiment of a sweep."""

    def __init__(self, config: SweepConfig) -> None:
        """Raises InputError for an MLflow that does not answer or cannot be used."""
        self.uri, self._proven = tracking_uri(config), False
        self._place = _place(self.uri)
        self._spool = Spool(redacted(self.uri))
        self._client, self.experiment_id = _open(self.uri, config.output, config.name)

    def start_study(self, config: SweepConfig, resume: bool = False) -> "Study":
        """The parent run of a study (config: made by for_backbone); on resume the one that was interrupted.

        Raises InputError where MLflow does not take this process's first study, artifacts included.
        """
        study = Study(self._client, self._spool, self.experiment_id, config, resume)
        try:
            study.begin()
        except Exception as error:
            if not self._proven:
                reason = f"MLflow does not take runs or artifacts: {reason_of(error)}."
                raise InputError(self._place, reason, FIX) from None
            self._spool.add(study.begin)
        self._proven = True
        return study


@dataclass
class _Tracked:
    """A run as this process knows it."""

    name: str
    tags: dict[str, str]  # that it is found by
    params: dict[str, Any]
    started: int = field(default_factory=lambda: _milliseconds(time.time()))
    run_id: str = ""  # empty until it was found or made
    last: dict[str, int] = field(default_factory=dict)  # metric -> last step stored


class Study:
    """The parent run of one backbone and its children; made by Tracking.start_study.

    Its methods raise nothing when MLflow fails: what they write waits in the spool.
    """

    def __init__(
        self, client: MlflowClient, spool: Spool, experiment_id: str, config: SweepConfig, resume: bool
    ) -> None:
        self._client, self._spool, self._experiment_id, self._config = client, spool, experiment_id, config
        self._capability: float | None = None
        self._trials: dict[str, _Tracked] = {}
        backbone = config.backbone
        tags = {"raysft.study": f"{config.name}/{backbone.name}", "raysft.study_id": _study_id(config, resume)}
        params = {"backbone": backbone.name, "path": backbone.path, "revision": backbone.revision}
        self._parent = _Tracked(backbone.name, tags, params)

    @property
    def run_id(self) -> str:
        """The parent's; empty while MLflow has not answered."""
        return self._parent.run_id

    def begin(self) -> None:
        """The parent is RUNNING and holds its config and the versions of the libraries. May be repeated."""
        versions = {f"version/{name}": version(name) for name in LIBRARIES} | {"version/raysft": __version__}
        config = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self._start(self._parent, versions)
        self._client.log_text(self.run_id, redacted(config), "config.yaml")

    def log_capability(self, probe: Mapping[str, Any]) -> None:
        """What the probe measured. Its numbers become the parent's metrics `capability/...`, all of it probe.json.

        Call it before the trials start: each of them gets capability/mean_probability as well.
        """
        self._capability = probe["mean_probability"]
        numbers = {f"capability/{name}": value for name, value in probe.items() if isinstance(value, int | float)}
        self._log_points(self._parent, [{"step": 0, "time": time.time(), **numbers}])
        self._log_text(self._parent, json.dumps(probe, indent=1), "probe.json")

    def log_data(self, name: str, source: Source, fingerprint: str, counts: Mapping[str, int]) -> None:
        """A data set of the study. name: train or heldout; counts: of its samples and tokens."""
        title = source.task if isinstance(source, ReasoningGymSource) else str(source.path)
        text = redacted(source.model_dump_json())
        kind = {"file": "local", "hub": "hugging_face"}.get(source.kind, source.kind)
        dataset = Dataset(redacted(title)[-500:], fingerprint[:36], kind, text, profile=json.dumps(dict(counts)))
        used = [DatasetInput(dataset, [InputTag("mlflow.data.context", name)])]
        facts = {"source": text, "fingerprint": fingerprint, **counts}

        def write() -> None:
            self._client.log_inputs(self._run(self._parent), used)
            self._batch(self._parent, tags={f"data/{name}/{key}": value for key, value in facts.items()})

        self._spool.add(write)

    def start_trial(self, trial_id: str, trial: TrialConfig, params: Mapping[str, Any] | None = None) -> None:
        """The child run of a trial is RUNNING: a new one, or the one that the trial had before it was interrupted.

        params: besides the contract's; give every trial of a study the same keys.
        """
        run = _Tracked(
            redacted(trial.objective.label()),
            {"raysft.trial_id": trial_id},
            _params(self._config.backbone.name, trial) | dict(params or {}),
        )
        child = self._trials.setdefault(trial_id, run)
        self._spool.add(lambda: self._start(child))
        if self._capability is not None:
            point = {"step": 0, "time": time.time(), "capability/mean_probability": self._capability}
            self._log_points(child, [point])
        self._log_text(child, trial.model_dump_json(indent=1), "trial.json")

    def log_points(self, trial_id: str, points: Iterable[Point]) -> None:
        """Metrics of a started trial: {"step": int, "time": Unix seconds, metric: number, ...}, steps ascending.

        Of each metric, only steps after the last one stored are written, so that a trial's points may be given again.
        """
        self._log_points(self._trials[trial_id], list(points))

    def end_trial(
        self,
        trial_id: str,
        status: Status,
        reason: str = "",
        summary: Mapping[str, float] | None = None,
        completions: Path | None = None,
    ) -> None:
        """A started trial's end: FINISHED, KILLED (stopped early) or FAILED; reason becomes the tag stop_reason.

        summary: final metrics, for those that have no point at the trial's last step. completions: a file of records,
        which becomes an artifact and a table in the UI.
        """
        child, now = self._trials[trial_id], time.time()

        def write() -> None:
            step = max(child.last.values(), default=0)
            self._write(child, [{"step": step, "time": now, **(summary or {})}])
            self._finish(self._run(child), status, reason, now)

        self._spool.add(write)
        if completions is not None:
            self._spool.add_file(lambda: log_completions(self._client, self._run(child), completions))

    def end(self, status: Status, summary: Mapping[str, float | str] | None = None) -> None:
        """The study's end: no child stays RUNNING. summary: numbers become metrics `best/...`, texts become tags.

        Waits half a minute for an MLflow that does not answer, then says what could not be written.
        """
        now = time.time()
        texts = {key: value for key, value in (summary or {}).items() if isinstance(value, str)}
        numbers = {key: float(value) for key, value in (summary or {}).items() if not isinstance(value, str)}
        best = [Metric(f"best/{key}", value, _milliseconds(now), 0) for key, value in numbers.items()]

        def write() -> None:
            self._batch(self._parent, best, tags=texts)
            for run in self._children():
                if run.info.status in ("RUNNING", "SCHEDULED"):
                    self._finish(run.info.run_id, "KILLED", "sweep stopped", now)
            self._finish(self.run_id, status, "", now)

        self._spool.add(write)
        self._spool.drain(END_SECONDS)

    def trials(self) -> list[dict[str, Any]]:
        """One row for each trial: trial_id, run_id, name, status, stop_reason, its parameters and last metrics.

        Raises MlflowException while MLflow does not answer.
        """
        self._spool.drain()
        rows = []
        for run in self._children():
            tags, info = run.data.tags, run.info
            row = {"trial_id": tags["raysft.trial_id"], "run_id": info.run_id, "name": info.run_name}
            row |= {"status": info.status, "stop_reason": tags.get("stop_reason", "")}
            rows.append(row | run.data.params | run.data.metrics)
        return rows

    def _log_points(self, run: _Tracked, points: Sequence[Point]) -> None:
        self._spool.add(lambda: self._write(run, points))

    def _log_text(self, run: _Tracked, text: str, name: str) -> None:
        self._spool.add_file(lambda: self._client.log_text(self._run(run), text, name))

    def statuses(self) -> dict[str, str]:
        """Status of each trial that MLflow holds, by trial_id; empty while it does not answer."""
        try:
            return {row["trial_id"]: row["status"] for row in self.trials()}
        except (MlflowException, OSError):
            return {}

    # What follows runs inside the spool, and may run again.

    def _run(self, run: _Tracked) -> str:
        """The run's id. It is looked for before it is made: the answer to an earlier attempt may have been lost."""
        if not run.run_id:
            tags = dict(run.tags)
            if run is not self._parent:
                tags["mlflow.parentRunId"] = self._run(self._parent)
            if found := self._search(tags):
                run.last = {name: self._last_step(found[0], name) for name in found[0].data.metrics}
                run.run_id = found[0].info.run_id
            else:
                made = self._client.create_run(self._experiment_id, run.started, tags, run.name)
                run.run_id = made.info.run_id
        return run.run_id

    def _start(self, run: _Tracked, tags: Mapping[str, str] | None = None) -> None:
        stored = self._client.get_run(self._run(run))
        self._batch(run, params={k: v for k, v in run.params.items() if k not in stored.data.params}, tags=tags or {})
        if "stop_reason" in stored.data.tags:
            self._client.delete_tag(run.run_id, "stop_reason")
        if stored.info.status != "RUNNING":
            self._client.update_run(run.run_id, "RUNNING")

    def _write(self, run: _Tracked, points: Iterable[Point]) -> None:
        """Store what is new of the points, in whole requests."""
        self._run(run)
        last, metrics = dict(run.last), []
        for point in points:
            step, when = int(point["step"]), _milliseconds(point["time"])
            for name, value in point.items():
                if name not in ("step", "time") and step > last.get(name, -1):
                    metrics.append(Metric(name, float(value), when, step))
                    last[name] = step
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            batch = metrics[start : start + METRICS_PER_REQUEST]
            self._batch(run, batch)
            run.last |= {metric.key: metric.step for metric in batch}

    def _batch(
        self,
        run: _Tracked,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self._client.log_batch(
            self._run(run),
            metrics,
            [Param(key, _text(value)) for key, value in (params or {}).items()],
            [RunTag(key, _text(value)) for key, value in (tags or {}).items()],
            synchronous=True,
        )

    def _finish(self, run_id: str, status: Status, reason: str, when: float) -> None:
        if reason:
            self._client.set_tag(run_id, "stop_reason", _text(reason))
        self._client.set_terminated(run_id, status, _milliseconds(when))

    def _last_step(self, run: Run, name: str) -> int:
        return max(metric.step for metric in self._client.get_metric_history(run.info.run_id, name))

    def _children(self) -> list[Run]:
        return self._search({"mlflow.parentRunId": self._run(self._parent)})

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs with these tags, oldest first."""
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        search = partial(
            self._client.search_runs, [self._experiment_id], condition, order_by=["attributes.start_time ASC"]
        )
        page = search()
        runs = list(page)
        while page.token:
            page = search(page_token=page.token)
            runs += page
        return runs


def log_completions(client: MlflowClient, run_id: str, path: Path) -> None:
    """A file of records as an artifact, and some of them as a table of the UI. Repeated, it replaces both.

    MLflow's own log_table would append to what an earlier attempt has written.
    """
    client.log_artifact(run_id, str(path))
    client.log_text(run_id, as_table(read_records(path)), TABLE)
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))


class Evaluations:
    """The experiment `evaluation`, where each time that a single model was scored is a run."""

    def __init__(self, output: Path, uri: str | None) -> None:
        """uri: default: sqlite under the output folder. Raises InputError as Tracking does."""
        self.uri = uri or default_uri(output)
        self._client, self._experiment_id = _open(self.uri, output, "evaluation")

    def log(
        self, model: str, params: Mapping[str, Any], metrics: Mapping[str, float], records: Path | None = None
    ) -> None:
        """Raises TrialFailed where MLflow no longer takes it."""
        try:
            run_id = self._client.create_run(self._experiment_id, run_name=model).info.run_id
            now = _milliseconds(time.time())
            self._client.log_batch(
                run_id,
                [Metric(key, float(value), now, 0) for key, value in metrics.items()],
                [Param(key, _text(value)) for key, value in params.items()],
            )
            if records is not None:
                log_completions(self._client, run_id, records)
            self._client.set_terminated(run_id)
        except Exception as error:
            raise TrialFailed(f"{_place(self.uri)}: MLflow does not take the run: {reason_of(error)}.") from None


def _place(uri: str) -> str:
    return f"tracking.uri '{redacted(uri)}'"


def _open(uri: str, output: Path, name: str) -> tuple[MlflowClient, str]:
    """A client and the experiment's id. Makes database and experiment where they are missing; several processes may do
    so at once.
    """
    output = output.resolve()
    artifacts = (output / "mlartifacts").as_uri() if _is_database(uri) else None  # a server has its own place
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".mlflow.lock", timeout=SET_UP_SECONDS):
            if _is_database(uri):
                _connect_once(uri)
            client = MlflowClient(uri)
            experiment = _experiment(client, name, artifacts)
    except Exception as error:
        raise InputError(_place(uri), f"MLflow cannot be used: {reason_of(error)}.", FIX) from None
    return client, str(active(experiment).experiment_id)


def open_to_read(uri: str, fix: str = "") -> MlflowClient:
    """A client for runs that are there: no database is made. fix: what to do where there are none."""
    with reading(uri):
        if _is_database(uri):
            url = sqlalchemy.make_url(uri)
            file = url.get_backend_name() == "sqlite" and Path(url.database or "")
            if (file and not file.is_file()) or not _holds_runs(url):
                raise InputError(_store(uri), "holds no runs.", fix)
        return MlflowClient(uri)


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raises InputError for whatever keeps runs from being read."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise InputError(_store(uri), f"cannot be read: {reason_of(error)}.", "Check the tracking URI.") from None


def active(experiment: Experiment) -> Experiment:
    """The experiment. Raises InputError for one that was deleted."""
    if experiment.lifecycle_stage != "active":
        fix = f"Restore it (mlflow experiments restore --experiment-id {experiment.experiment_id}), or --set name=..."
        raise InputError(f"MLflow experiment '{experiment.name}'", "was deleted.", fix)
    return experiment


def _store(uri: str) -> str:
    return f"MLflow at {redacted(uri)}"


def _holds_runs(url: sqlalchemy.URL) -> bool:
    """Whether a database is MLflow's; it would turn any other one into one."""
    engine = sqlalchemy.create_engine(url)
    try:
        return sqlalchemy.inspect(engine).has_table("experiments")
    finally:
        engine.dispose()


def _is_database(uri: str) -> bool:
    return uri.split(":")[0].split("+")[0] in DATABASES


def _connect_once(uri: str) -> None:
    """Raises at once for a database that is not there; MLflow would try for minutes."""
    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    engine.connect().close()
    engine.dispose()


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> Any:
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts, OPENS_AS))
        except MlflowException:  # another process, on another machine, was first
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return found


def _study_id(config: SweepConfig, resume: bool) -> str:
    """The id of the study in this output folder: others may run a sweep of the same name on the same server."""
    path = config.folder.resolve() / config.backbone.name / STUDY_ID
    if resume and path.exists() and (found := path.read_text().strip()):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made := uuid.uuid4().hex)
    return made


def _params(backbone: str, trial: TrialConfig) -> dict[str, Any]:
    """The contract's parameters, the same keys for every trial; then what only this objective has, as `focal.gamma`."""
    values = trial.model_dump(mode="json", exclude={"objective"})
    objective = trial.objective.model_dump(mode="json")
    name = objective.pop("type")
    own = {key: objective.pop(key) for key in trial.objective.parameters()}
    shared = {key: own.pop(key, None) for key in ("exponent", "final_exponent", "schedule")}
    special = {f"{name}.{key}": value for key, value in own.items()}
    return {"backbone": backbone, "objective": name, **shared, **objective, **values, **special}


def _text(value: Any) -> str:
    return "none" if value is None else redacted(str(value))[:TEXT_LIMIT]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
