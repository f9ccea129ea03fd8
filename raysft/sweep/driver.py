"""One sweep from its file to its result: for each backbone a probe, then a search by Tune over warm groups.

Tune and Optuna decide what runs; the groups train; this process alone writes to MLflow, mirroring what the trials
record in their own folders.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.execution import class_cache

from raysft.advisor import Advice, advise, asks_advice
from raysft.capability import Capability
from raysft.config import STUDY_SECTIONS, SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.evidence import earlier_studies
from raysft.exposure import check_mlflow, check_ray
from raysft.preflight import check_written
from raysft.progress import Progress
from raysft.store import Store, check_storage, read_object
from raysft.sweep.board import ON_HEAD
from raysft.sweep.capacity import groups_at_once
from raysft.sweep.confirm import best_of, confirm_trials, most_confirm_trials
from raysft.sweep.groups import GroupsInTurn
from raysft.sweep.ledger import Ledger, TrialRow
from raysft.sweep.mirror import Mirror
from raysft.sweep.models import keep_models
from raysft.sweep.optunafile import write_optuna
from raysft.sweep.search import StudySearch
from raysft.sweep.session import ray_session
from raysft.sweep.space import Space
from raysft.sweep.trainable import run_trial
from raysft.sweepfile import absolute
from raysft.tracking import Study as TrackedStudy
from raysft.tracking import Tracking
from raysft.tracking.study import STUDY_ID

# Tune's trial functions only wait for their group; the head node can hold a thousand of them.
TRIAL_RESOURCES = {"CPU": 0.0, **ON_HEAD}
# Tune would hand them a cloud's keys by a runtime environment, which Ray shows in logs and in the list of processes.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
SETTINGS = "settings.json"
ADVICE = "advice.json"
RESULT = "study.json"
TUNE = "tune"


@dataclass(frozen=True)
class StudyResult:
    backbone: str
    capability: Capability
    trials: list[TrialRow]
    best: TrialRow | None
    interrupted: bool


def sweep(
    config: SweepConfig,
    progress: Progress,
    resume: bool = False,
    address: str | None = None,
    given: Callable[[SweepConfig], list[TrialConfig]] | None = None,
) -> list[StudyResult]:
    """Run every backbone's study in turn. given: the trials before the searched ones (default: the baselines).

    Raises InputError for what cannot run, before anything starts; TrialFailed where the sweep cannot go on.
    """
    config = absolute(config)
    check_written(config)
    check_mlflow(config.tracking.uri)
    check_storage(config.storage)
    if not ray.is_initialized():
        check_ray(address or os.environ.get("RAY_ADDRESS"))
    studies = [config.for_backbone(b.name) for b in config.backbones]
    for study in studies:
        _claim(study, resume)
    with ThreadPoolExecutor(1) as aside:
        tracked = aside.submit(Tracking, config)  # MLflow makes its database while Ray starts
        with ray_session(address):
            slots = [groups_at_once(study) for study in studies]
            try:
                return _in_turn(studies, slots, tracked.result(), progress, resume, given or baselines)
            except RayActorError:  # the only actor that this process asks
                raise TrialFailed("the process that hands out the trials was lost. Go on with --resume.") from None


def _in_turn(
    studies: list[SweepConfig],
    slots: list[int],
    tracking: Tracking,
    progress: Progress,
    resume: bool,
    given: Callable[[SweepConfig], list[TrialConfig]],
) -> list[StudyResult]:
    """Each study that is not finished, to the first one that is interrupted."""
    results = []
    finished = [_finished(study) for study in studies]
    with GroupsInTurn() as groups:
        for at, (study, slot_count, done) in enumerate(zip(studies, slots, finished, strict=True)):
            if done:
                progress.finished_earlier(done.backbone)
                results.append(done)
                continue
            own = _Study(study, given(study), slot_count, tracking, progress, resume)
            results.append(own.run(groups, last=all(finished[at + 1 :])))
            if results[-1].interrupted:
                break
    return results


def baselines(config: SweepConfig) -> list[TrialConfig]:
    rate = config.training.learning_rate
    return [
        TrialConfig(objective=objective, learning_rate=rate, seed=config.seed, role="baseline")
        for objective in config.all_baselines()
    ]


def study_store(config: SweepConfig) -> Store:
    return config.store.below(config.backbone.name)


def study_folder(config: SweepConfig) -> Path:
    return study_store(config).folder


def _claim(config: SweepConfig, resume: bool) -> None:
    """Refuse to mix a new run into an old one, or two settings in one study, and make the folder."""
    store, folder = study_store(config), study_folder(config)
    kept = store.names(folder)
    if kept and not resume:
        raise InputError(
            store.uri or str(folder),
            "holds an earlier run of this sweep.",
            "Continue it with --resume, or give another name: --set name=... (or remove the folder).",
        )
    if folder.exists() and any(folder.iterdir()) and _of_another(store, kept):
        raise InputError(
            f"storage {config.storage}",
            f"does not hold the run that lies in {folder}, whose place its own would take.",
            "Give another name or output: --set name=...; or go on without storage.",
        )
    store.pull(folder, but=("checkpoints", "model", "groups"))
    earlier = folder / SETTINGS
    changed = _changes(json.loads(earlier.read_text()), _settings(config)) if earlier.exists() else []
    if changed:
        raise InputError(
            str(folder),
            f"holds a sweep with other settings: {'; '.join(changed)}.",
            "Resume with the settings that it began with, or give another name: --set name=...",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            str(folder), f"cannot be made: {error.strerror}.", "Set output to a folder you can write."
        ) from None


def _of_another(store: Store, kept: list[str]) -> bool:
    """Whether a study's folder here is of another run than the one in the bucket. kept: names of what lies there."""
    if store.uri is None:
        return False
    if not kept:
        return True
    own = store.folder / STUDY_ID
    return own.exists() and STUDY_ID in kept and read_object(f"{store.uri}/{STUDY_ID}").decode() != own.read_text()


def _finished(config: SweepConfig) -> StudyResult | None:
    """The result of a study that needs no group any more; None for one with failed trials, which a resume repeats."""
    path = study_folder(config) / RESULT
    if not path.exists():
        return None
    read = json.loads(path.read_text())
    rows = [TrialRow(**row | {"trial": TrialConfig.model_validate(row["trial"])}) for row in read["trials"]]
    if read["interrupted"] or any(row.status == "FAILED" for row in rows):
        return None
    begun = [row.trial for row in rows]
    if any(trial not in begun for trial in confirm_trials(config, rows)):  # more seeds are asked for now
        return None
    best = next((row for row in rows if row.trial_id == read["best"]), None)
    return StudyResult(read["backbone"], Capability(**read["capability"]), rows, best, interrupted=False)


def _settings(config: SweepConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=STUDY_SECTIONS)


def _changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Each value that differs, as `training.steps was 20, is 40`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [line for n in names for line in _changes(old.get(n), new.get(n), f"{key}.{n}" if key else n)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, pair in enumerate(zip(old, new, strict=True)) for line in _changes(*pair, f"{key}.{i}")]
    return [] if old == new else [f"{key} was {json.dumps(old)}, is {json.dumps(new)}"]


def planned(config: SweepConfig, given: int, rows: list[TrialRow]) -> int:
    """Trials of a study; at most, while the search goes on. rows: that began; given: how many precede the searched."""
    searched = given + config.searched
    over = sum(row.trial.role != "confirm" and row.status != "INTERRUPTED" for row in rows) >= searched
    if not over:
        return searched + most_confirm_trials(config)
    begun = [row.trial for row in rows if row.trial.role == "confirm"]
    return searched + len(begun) + sum(trial not in begun for trial in confirm_trials(config, rows))


class _Study:
    def __init__(
        self,
        config: SweepConfig,
        given: list[TrialConfig],
        slots: int,
        tracking: Tracking,
        progress: Progress,
        resume: bool,
    ) -> None:
        self.config, self.given, self.tracking, self.progress, self.resume = config, given, tracking, progress, resume
        self.folder = study_folder(config)
        self.store = study_store(config)
        trials = self.store.below("trials")
        self.ledger = Ledger(trials.folder, trials.uri)
        rows = self.ledger.rows()
        self.total = planned(config, len(given), rows)
        self.left = self.total - sum(row.ended for row in rows)
        lanes = config.workers.lanes
        self.slots = min(slots, math.ceil(self.left / lanes))
        self.at_once = min(self.slots * lanes, self.left)

    def run(self, groups: GroupsInTurn, last: bool) -> StudyResult:
        """last: no study comes after it, so that groups without a trial can end."""
        name = self.config.backbone.name
        self.store.publish(self.folder / SETTINGS, json.dumps(_settings(self.config), indent=1))
        self.progress.study(self.config, self.total, self.at_once)
        tracked = self.tracking.start_study(self.config, resume=self.resume)
        # Promoted trials come again, and how many confirm the result is known only by its winner.
        expected = None if self.config.search.asha or self.config.confirm else self.left
        board = groups.open(self.config, self.slots, self._groups(), expected, last)
        result = None
        try:
            capability = self._measure(board, tracked)
            self.progress.capability(capability.mean_probability)
            self._search(board, capability, self._advise(capability, tracked), tracked)
            rows = self.ledger.rows()
            missing = planned(self.config, len(self.given), rows) - sum(row.status != "INTERRUPTED" for row in rows)
            result = StudyResult(name, capability, rows, best_of(rows, self.config.search), missing > 0)
            return result
        finally:
            if result is None or result.interrupted:
                groups.close("save")
            else:
                groups.end_study()
            self._end(tracked, result)

    def _groups(self) -> str:
        """Where Ray Train keeps what it has to say of its runs: every node must see it."""
        kept = self.store.below("groups")
        return kept.uri or str(kept.folder.resolve())

    def _measure(self, board: Any, tracked: TrackedStudy) -> Capability:
        """The capability and facts of the data that the first group measured, now or before an interruption."""
        path = self.folder / "probe.json"
        if path.exists():
            ray.get(board.set_measurement.remote(path.read_text()))
        text, refusal = ray.get(board.measurement.remote())
        if text is None:
            raise InputError(f"backbone '{self.config.backbone.name}'", refusal)
        self.store.publish(path, text)
        measured = json.loads(text)
        tracked.log_capability(measured["capability"])
        sources = {"train": self.config.data.train, "heldout": self.config.data.heldout or self.config.data.train}
        for name, facts in measured["data"].items():
            tracked.log_data(name, sources[name], facts["fingerprint"], facts["counts"])
        for note in measured["notes"]:
            self.progress.note(note)
        return Capability(**measured["capability"])

    def _advise(self, capability: Capability, tracked: TrackedStudy) -> Advice | None:
        """By what was known when the study began; None where nothing goes by it."""
        if not asks_advice(self.config, self.given):
            return None
        path = self.folder / ADVICE
        if path.exists():
            advice = Advice.from_json(path.read_text())
        else:
            evidence, note = earlier_studies(self.config)
            if note:
                self.progress.note(note)
            advice = advise(capability, evidence)
            self.store.publish(path, advice.to_json())
        tracked.log_advice(advice)
        return advice

    def _search(self, board: Any, capability: Capability, advice: Advice | None, tracked: TrackedStudy) -> None:
        """Run Tune until every trial has ended, or to the user's interruption."""
        search = self.config.search
        space = Space(self.config.space, self.config.training.learning_rate, self.config.seed)
        grid = self.config.grid()
        searcher = StudySearch(space, self.given, search, capability, self.ledger, self._confirm, advice, grid)
        mirror = Mirror(tracked, board, self.ledger, self.progress)
        mirror.catch_up(searcher.paused)
        if not self.left:
            return
        shutil.rmtree(self.folder / TUNE, ignore_errors=True)
        trainable = partial(run_trial, board=board, store=self.ledger.store)
        tune.Tuner(
            tune.with_resources(trainable, TRIAL_RESOURCES),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,  # the searcher says when it is over
                max_concurrent_trials=self.at_once,
                reuse_actors=True,
                trial_name_creator=_leg,
                trial_dirname_creator=_leg,
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(self.folder),
                callbacks=[mirror],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.config.workers.max_failures),
            ),
        ).fit()
        if searcher.over:
            for trial_id in sorted(searcher.paused):
                mirror.stop(trial_id)

    def _confirm(self, rows: list[TrialRow]) -> list[TrialConfig]:
        """What confirms the search, whose winner is known now, and so the number of trials."""
        self.progress.total = planned(self.config, len(self.given), rows)
        return confirm_trials(self.config, rows)

    def _end(self, tracked: TrackedStudy, result: StudyResult | None) -> None:
        if result is None:
            tracked.end("FAILED", None)
            return
        best = result.best
        if not result.interrupted:
            keep_models(self.config, self.ledger.store, result, tracked)
        summary: dict[str, float | str] = {}
        if best:
            summary = {**best.metrics, "best_trial": best.trial_id, "best_objective": best.trial.objective.label()}
        tracked.end("KILLED" if result.interrupted else "FINISHED", summary)
        self.store.publish(self.folder / RESULT, _as_json(result))
        self.store.push(write_optuna(self.config, result.capability, self.ledger, tracked.run_ids()))
        self.progress.ended(result.interrupted)


def _leg(trial: Any) -> str:
    """Tune knows each way of a trial from one rung to the next as a trial of its own."""
    return "-".join(str(trial.config[key]) for key in ("trial_id", "until") if trial.config[key] is not None)


def _as_json(result: StudyResult) -> str:
    plain = {
        "backbone": result.backbone,
        "capability": result.capability.to_dict(),
        "trials": [asdict(r) | {"trial": r.trial.model_dump(mode="json")} for r in result.trials],
        "best": result.best.trial_id if result.best else None,
        "interrupted": result.interrupted,
        "time": time.time(),
    }
    return json.dumps(plain, indent=1)
