"""What runs are called, described by and found by in MLflow's UI, and trials read back from their parameters.

The UI draws a parameter as numbers only where every compared run has a number, and of those that differ between runs it
takes the first by name: so what numbers can say is said in numbers, and what is no setting of the loss is a tag.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Selection, known
from raysft.redaction import redacted

NOTE = "mlflow.note.content"  # the tag that the UI shows as a run's description
EVERYTHING = {"threshold": 0.0, "upper": 1.0, "keep": "above"}  # the interval of an objective that has none
ROLES = {"baseline": "Baseline", "search": "Searched", "train": "Trained by itself", "confirm": "Repeated to confirm"}


def params_of(backbone: str, trial: TrialConfig) -> dict[str, Any]:
    """The contract's parameters, the same keys for every trial; then what only this objective has, as `focal.gamma`.

    Without a threshold every token is kept, as with p >= 0, which is a number.
    """
    objective = trial.objective.model_dump(mode="json")
    name = objective.pop("type")
    own = {key: objective.pop(key) for key in trial.objective.parameters()}
    shared = {key: own.pop(key, None) for key in ("exponent", "final_exponent", "schedule")}
    if objective["threshold"] is None:
        objective |= EVERYTHING
    elif objective["upper"] is None:
        objective["upper"] = EVERYTHING["upper"]
    special = {f"{name}.{key}": value for key, value in own.items()}
    rest = {"learning_rate": trial.learning_rate, "seed": trial.seed}
    return {"backbone": backbone, "objective": name, **shared, **objective, **rest, **special}


def objective_of(params: Mapping[str, str]) -> Selection | None:
    """The objective that a run's parameters mean; None for one that this version of raysft does not know."""
    name = params.get("objective", "")
    if (family := known().get(name)) is None:
        return None
    given = {key.removeprefix(f"{name}."): value for key, value in params.items() if value != "none"}
    interval = {key for key, value in EVERYTHING.items() if given.get(key) == str(value)}
    if interval == EVERYTHING.keys():
        given = {key: value for key, value in given.items() if key not in interval}
    elif "upper" in interval:
        del given["upper"]
    try:
        return family.model_validate({key: given[key] for key in family.model_fields if key in given})
    except ValidationError:
        return None


def name_of(trial: TrialConfig, config: SweepConfig) -> str:
    """The objective, and what else differs between the trials of a study."""
    rate = f", lr {trial.learning_rate:.3g}" if config.space.learning_rate is not None else ""
    seed = f", seed {trial.seed}" if trial.seed != config.seed else ""
    return redacted(trial.objective.label() + rate + seed)


def tags_of(config: SweepConfig, role: str) -> dict[str, str]:
    """What runs are filtered by, besides the file's own. role: a trial's, or `study` for a parent."""
    return {**config.tracking.tags, "sweep": config.name, "backbone": config.backbone.name, "role": role}


def trial_tags(trial: TrialConfig, config: SweepConfig, capability: float | None) -> dict[str, str]:
    """The same of a trial, with its description, and the quantiles that its interval comes from."""
    levels = {"quantile": trial.quantile, "upper_quantile": trial.upper_quantile}
    known_levels = {key: str(value) for key, value in levels.items() if value is not None}
    on = config.backbone.name + ("" if capability is None else f" (capability {capability:.3f})")
    settings = f"learning rate {trial.learning_rate:g}, seed {trial.seed}"
    note = f"{ROLES.get(trial.role, trial.role)} on {on}: {trial.objective.label()}, {settings}."
    return tags_of(config, trial.role) | known_levels | {NOTE: note}


def study_note(config: SweepConfig, capability: float | None, summary: Mapping[str, float | str]) -> str:
    """A parent's description, where nothing better is said. summary: as Study.end is given it."""
    metric = config.search.metric
    found = f"{config.backbone.name} in sweep {config.name}."
    if capability is not None:
        found += f" Capability {capability:.3f} (mean probability of the training targets before training)."
    if "best_objective" in summary and isinstance(value := summary.get(metric), float):
        found += f" Best {metric}: {value:.3f}, with {summary['best_objective']}."
    return found
