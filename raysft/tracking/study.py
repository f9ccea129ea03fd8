"""What a sweep writes: the run of each study, and those of its trials."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException

from raysft import __version__
from raysft.advisor import Advice
from raysft.config import ReasoningGymSource, Source, SweepConfig, TrialConfig
from raysft.errors import InputError
from raysft.redaction import redacted
from raysft.tracking.describing import NOTE, name_of, params_of, study_note, tags_of, trial_tags
from raysft.tracking.evaluations import log_completions
from raysft.tracking.registry import register
from raysft.tracking.runs import Point, Runs, Status, Tracked, as_text, milliseconds
from raysft.tracking.spool import Spool, reason_of
from raysft.tracking.store import FIX, place, tracking_uri, writer
from raysft.tracking.view import VIEW, view

LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "mlflow", "optuna")
STUDY_ID = "mlflow-study"  # in a study's folder, the file with the id that its parent run bears
DIGEST = 8  # characters of a fingerprint that the UI shows beside a data set's name
END_SECONDS = 30.0  # that the end of a study waits for an MLflow that does not answer


class Tracking:
    """The experiment of a sweep."""

    def __init__(self, config: SweepConfig) -> None:
        """Raises InputError for an MLflow that does not answer or cannot be used."""
        self.uri, self._proven = tracking_uri(config), False
        self._place = place(self.uri)
        self._spool = Spool(redacted(self.uri))
        client, self.experiment_id = writer(self.uri, config.output, config.name)
        self._runs = Runs(client, self.experiment_id)

    def start_study(self, config: SweepConfig, resume: bool = False) -> "Study":
        """The parent run of a study (config: made by for_backbone); on resume the one that was interrupted.

        Raises InputError where MLflow does not take this process's first study, artifacts included.
        """
        study = Study(self._runs, self._spool, config, resume)
        try:
            study.begin()
        except Exception as error:
            if not self._proven:
                reason = f"MLflow does not take runs or artifacts: {reason_of(error)}."
                raise InputError(self._place, reason, FIX) from None
            self._spool.add(study.begin)
        self._proven = True
        return study


class Study:
    """The parent run of one backbone and its children; made by Tracking.start_study.

    Its methods raise nothing when MLflow fails: what they write waits in the spool.
    """

    def __init__(self, runs: Runs, spool: Spool, config: SweepConfig, resume: bool) -> None:
        self._runs, self._spool, self._config = runs, spool, config
        self._capability: float | None = None
        self._trials: dict[str, Tracked] = {}
        self._data: list[DatasetInput] = []
        backbone = config.backbone
        tags = {"raysft.study": f"{config.name}/{backbone.name}", "raysft.study_id": _study_id(config, resume)}
        params = {"backbone": backbone.name, "path": backbone.path, "revision": backbone.revision}
        self._parent = Tracked(backbone.name, tags, params)

    @property
    def run_id(self) -> str:
        """The parent's; empty while MLflow has not answered."""
        return self._parent.run_id

    def begin(self) -> None:
        """The parent is RUNNING and holds its config and the versions of the libraries. May be repeated."""
        versions = {f"version/{name}": version(name) for name in LIBRARIES} | {"version/raysft": __version__}
        config = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self._runs.start(self._parent, versions | tags_of(self._config, "study"))
        self._runs.client.log_text(self.run_id, redacted(config), "config.yaml")
        self._runs.show(VIEW, view(self._config.search.metric, self._config.search.mode))

    def log_capability(self, probe: Mapping[str, Any]) -> None:
        """What the probe measured. Its numbers become the parent's metrics `capability/...`, all of it probe.json.

        Call it before the trials start: each of them gets capability/mean_probability as well.
        """
        self._capability = probe["mean_probability"]
        numbers = {f"capability/{name}": value for name, value in probe.items() if isinstance(value, int | float)}
        self._log_points(self._parent, [{"step": 0, "time": time.time(), **numbers}])
        self._log_text(self._parent, json.dumps(probe, indent=1), "probe.json")
        self._tell(study_note(self._config, self._capability, {}))

    def log_advice(self, advice: Advice) -> None:
        """What was advised before any trial, whole as advice.json and in short as tags."""
        tags = {"advice/objective": advice.choices[0].objective.label(), "advice/confidence": advice.confidence}
        tags |= {"advice/regime": advice.regime, "advice/exponent": f"{advice.exponent:g}"}
        self._spool.add(lambda: self._runs.batch(self._parent, tags=tags))
        self._log_text(self._parent, advice.to_json(), "advice.json")

    def log_data(self, name: str, source: Source, fingerprint: str, counts: Mapping[str, int]) -> None:
        """A data set of the study and of its trials. name: train or heldout; counts: of its samples and tokens.

        Call it before the trials start.
        """
        title = source.task if isinstance(source, ReasoningGymSource) else str(source.path)
        text = redacted(source.model_dump_json())
        kind = {"file": "local", "hub": "hugging_face"}.get(source.kind, source.kind)
        dataset = Dataset(redacted(title)[-500:], fingerprint[:DIGEST], kind, text, profile=json.dumps(dict(counts)))
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", name)])
        self._data.append(used)
        facts = {"source": text, "fingerprint": fingerprint, **counts}

        def write() -> None:
            self._runs.client.log_inputs(self._runs.id_of(self._parent), [used])
            self._runs.batch(self._parent, tags={f"data/{name}/{key}": value for key, value in facts.items()})

        self._spool.add(write)

    def start_trial(self, trial_id: str, trial: TrialConfig, params: Mapping[str, Any] | None = None) -> None:
        """The child run of a trial is RUNNING: a new one, or the one that the trial had before it was interrupted.

        params: besides the contract's; give every trial of a study the same keys.
        """
        run = Tracked(
            name_of(trial, self._config),
            {"raysft.trial_id": trial_id},
            params_of(self._config.backbone.name, trial) | dict(params or {}),
            self._parent,
        )
        child = self._trials.setdefault(trial_id, run)
        tags = trial_tags(trial, self._config, self._capability)

        def write() -> None:
            self._runs.start(child, tags)
            if self._data:
                self._runs.client.log_inputs(self._runs.id_of(child), self._data)

        self._spool.add(write)
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
            self._runs.write(child, [{"step": step, "time": now, **(summary or {})}])
            self._runs.finish(self._runs.id_of(child), status, reason, now)

        self._spool.add(write)
        if completions is not None:
            self._spool.add_file(lambda: log_completions(self._runs.client, self._runs.id_of(child), completions))

    def register(self, trial_id: str, model: Path, tags: Mapping[str, str]) -> None:
        """A trial's model, in Hugging Face's format, becomes a version of `tracking.register_as`-BACKBONE.

        Of each trial one version, however often it is asked for; trials of an earlier process count too.
        """
        child = self._trials.get(trial_id) or Tracked("", {"raysft.trial_id": trial_id}, {}, self._parent)
        name = f"{self._config.tracking.register_as}-{self._config.backbone.name}"
        tags = {key: as_text(value) for key, value in {**self._config.tracking.tags, **tags}.items()}
        self._spool.add_file(lambda: register(self._runs, self._runs.id_of(child), model, name, tags))

    def end(self, status: Status, summary: Mapping[str, float | str] | None = None) -> None:
        """The study's end: no child stays RUNNING. summary: numbers become metrics `best/...`, texts become tags.

        Waits half a minute for an MLflow that does not answer, then says what could not be written.
        """
        now = time.time()
        texts = {key: value for key, value in (summary or {}).items() if isinstance(value, str)}
        numbers = {key: float(value) for key, value in (summary or {}).items() if not isinstance(value, str)}
        best = [Metric(f"best/{key}", value, milliseconds(now), 0) for key, value in numbers.items()]
        texts[NOTE] = study_note(self._config, self._capability, summary or {})

        def write() -> None:
            self._runs.batch(self._parent, best, tags=texts)
            for run in self._runs.children(self._parent):
                if run.info.status in ("RUNNING", "SCHEDULED"):
                    self._runs.finish(run.info.run_id, "KILLED", "sweep stopped", now)
            self._runs.finish(self.run_id, status, "", now)

        self._spool.add(write)
        self._spool.drain(END_SECONDS)

    def trials(self) -> list[dict[str, Any]]:
        """One row for each trial: trial_id, run_id, name, status, stop_reason, its parameters and last metrics.

        Raises MlflowException while MLflow does not answer.
        """
        self._spool.drain()
        rows = []
        for run in self._runs.children(self._parent):
            tags, info = run.data.tags, run.info
            row = {"trial_id": tags["raysft.trial_id"], "run_id": info.run_id, "name": info.run_name}
            row |= {"status": info.status, "stop_reason": tags.get("stop_reason", "")}
            rows.append(row | run.data.params | run.data.metrics)
        return rows

    def statuses(self) -> dict[str, str]:
        """Status of each trial that MLflow holds, by trial_id; empty while it does not answer."""
        return self._known("status")

    def run_ids(self) -> dict[str, str]:
        """MLflow's id of each trial's run, by trial_id; empty while it does not answer."""
        return self._known("run_id")

    def _known(self, key: str) -> dict[str, str]:
        try:
            return {row["trial_id"]: row[key] for row in self.trials()}
        except (MlflowException, OSError):
            return {}

    def _log_points(self, run: Tracked, points: list[Point]) -> None:
        self._spool.add(lambda: self._runs.write(run, points))

    def _tell(self, note: str) -> None:
        self._spool.add(lambda: self._runs.batch(self._parent, tags={NOTE: note}))

    def _log_text(self, run: Tracked, text: str, name: str) -> None:
        self._spool.add_file(lambda: self._runs.client.log_text(self._runs.id_of(run), text, name))


def _study_id(config: SweepConfig, resume: bool) -> str:
    """The id of the study in this output folder: others may run a sweep of the same name on the same server."""
    store = config.store.below(config.backbone.name)
    path = store.folder / STUDY_ID
    if resume and path.exists() and (found := path.read_text().strip()):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    store.publish(path, made := uuid.uuid4().hex)
    return made
