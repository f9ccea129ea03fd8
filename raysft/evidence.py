"""What earlier studies found, read from MLflow as evidence for the advice on a new one."""

from mlflow.entities import Run

from raysft.advisor import Evidence
from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.objectives import Power
from raysft.results import Trial, trial_of
from raysft.tracking import all_runs, holds_runs, open_to_read, reading, tracking_uri

METRIC = "eval/accuracy"
MOST_RUNS = 5000  # the newest; enough for hundreds of studies, and read in seconds


def earlier_studies(config: SweepConfig) -> tuple[list[Evidence], str | None]:
    """The studies in the sweep's MLflow store that belong to other experiments; and why they could not be read, if so.

    Never raises for a store that cannot be read: the advice then rests on the paper.
    """
    uri = tracking_uri(config)
    if not holds_runs(uri):
        return [], None
    try:
        return _read(uri, config.name), None
    except InputError as error:
        return [], f"earlier studies are not taken into account: {error}"


def _read(uri: str, own: str) -> list[Evidence]:
    client = open_to_read(uri)
    with reading(uri):
        names = {e.experiment_id: e.name for e in client.search_experiments() if e.name != own}
        runs = all_runs(client, list(names), newest=MOST_RUNS) if names else []
    trials: dict[str, list[Trial]] = {}
    for run in runs:
        if "raysft.trial_id" in run.data.tags:
            trials.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(trial_of(run))
    parents = [run for run in runs if "raysft.study" in run.data.tags]
    found = [_evidence(run, names[run.info.experiment_id], trials.get(run.info.run_id, [])) for run in parents]
    return [study for study in found if study is not None]


def _evidence(run: Run, experiment: str, trials: list[Trial]) -> Evidence | None:
    """Of each objective its best trial, whatever the learning rate; None where too little was tried."""
    capability = run.data.metrics.get("capability/mean_probability")
    scores: dict[float, float] = {}
    thresholded: float | None = None
    for trial in trials:
        value, objective = trial.metrics.get(METRIC), trial.objective
        if trial.status != "FINISHED" or trial.role == "confirm" or value is None or not isinstance(objective, Power):
            continue
        if objective == Power(exponent=0, threshold=0.2):
            thresholded = max(value, thresholded or 0.0)
        elif objective == Power(exponent=objective.exponent):
            scores[objective.exponent] = max(value, scores.get(objective.exponent, 0.0))
    if capability is None or len(scores) < 2:
        return None
    return Evidence(f"{experiment}/{run.info.run_name}", capability, scores, thresholded)
