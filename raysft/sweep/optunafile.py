"""A study as a file of Optuna's own, for optuna-dashboard and whatever else reads Optuna's storage."""

import os
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raysft.capability import Capability
from raysft.config import SweepConfig
from raysft.sweep.ledger import BEGUN, ENDED, Ledger, TrialRow
from raysft.sweep.space import Space

FILE = "optuna.db"


def write_optuna(config: SweepConfig, capability: Capability, ledger: Ledger, run_ids: Mapping[str, str]) -> Path:
    """All trials of a study as `OUTPUT/NAME/BACKBONE/optuna.db`, study name NAME/BACKBONE, from the ledger.

    config: made by for_backbone. run_ids: MLflow's, by the ledger's trial ids. Written whole each time; whoever has the
    file open keeps the old one.
    """
    path = ledger.folder.parent / FILE
    temporary = path.with_name(f".{FILE}")
    temporary.unlink(missing_ok=True)
    search, name = config.search, f"{config.name}/{config.backbone.name}"
    direction = StudyDirection.MAXIMIZE if search.mode == "max" else StudyDirection.MINIMIZE
    storage = optuna.storages.RDBStorage(f"sqlite:///{temporary.resolve()}")
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([search.metric])
        study.set_user_attr("backbone", config.backbone.name)
        study.set_user_attr("capability", capability.mean_probability)
        space = Space(config.space, config.training.learning_rate, config.seed)
        study.add_trials([_frozen(row, space, capability, ledger, search.metric, run_ids) for row in ledger.rows()])
    finally:
        storage.remove_session()
        storage.engine.dispose()
    os.replace(temporary, path)
    return path


def _frozen(
    row: TrialRow, space: Space, capability: Capability, ledger: Ledger, metric: str, run_ids: Mapping[str, str]
) -> FrozenTrial:
    """A trial as Optuna has it: without parameters where it lies outside the space, as most baselines do."""
    params, distributions = space.locate(row.trial, capability)
    values = {step: value for step, value in ledger.values(row.trial_id, metric).items() if value == value}
    state = _state(row, whole=row.step in values)
    facts = {"objective": row.trial.objective.label(), "role": row.trial.role, "trial_id": row.trial_id}
    facts |= {"mlflow_run_id": run_ids.get(row.trial_id, ""), "stop_reason": row.reason}
    rate = {"learning_rate": row.trial.learning_rate, "seed": row.trial.seed}
    trial = optuna.trial.create_trial(
        state=state,
        value=values[max(values)] if values and state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params=params,
        distributions=distributions,
        user_attrs={**facts, **rate},
        intermediate_values=values,
    )
    folder = ledger.folder / row.trial_id
    trial.datetime_start = datetime.fromtimestamp((folder / BEGUN).stat().st_mtime)
    if state.is_finished():
        trial.datetime_complete = datetime.fromtimestamp((folder / ENDED).stat().st_mtime)
    return trial


def _state(row: TrialRow, whole: bool) -> TrialState:
    """whole: it was evaluated at its last step."""
    if row.status == "FINISHED":
        return TrialState.COMPLETE if whole else TrialState.PRUNED
    return {"KILLED": TrialState.PRUNED, "FAILED": TrialState.FAIL}.get(row.status, TrialState.RUNNING)
