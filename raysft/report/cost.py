"""What a study's trials cost: hours of processors, and tokens."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from raysft.results import Study, Trial, history

ROLES = {"baseline": "baselines", "search": "searched", "confirm": "confirming", "train": "given"}


@dataclass(frozen=True)
class Cost:
    """Of some trials. hours: of GPUs or CPUs, as `unit` says; None where the settings are unknown. tokens: that were
    trained on; None where the data were not tracked.
    """

    what: str
    trials: int
    finished: int
    stopped: int
    failed: int
    hours: float | None
    unit: str
    tokens: float | None


def costs(study: Study) -> list[Cost]:
    """By role, then of all."""
    groups = {name: [t for t in study.trials if t.role == role] for role, name in ROLES.items()}
    rows = [_cost(study, name, trials) for name, trials in groups.items() if trials]
    return [*rows, _cost(study, "all", study.trials)]


def _cost(study: Study, what: str, trials: list[Trial]) -> Cost:
    amount, unit = _processors(study)
    seconds = sum(_seconds(study, trial) for trial in trials)
    per_step = _tokens_per_step(study)
    ended = Counter(trial.status for trial in trials)
    return Cost(
        what,
        len(trials),
        ended["FINISHED"],
        ended["KILLED"],
        ended["FAILED"],
        hours=None if amount is None else amount * seconds / 3600,
        unit=unit,
        tokens=None if per_step is None else per_step * sum(t.steps for t in trials),
    )


def _processors(study: Study) -> tuple[float | None, str]:
    """GPUs, or where there are none CPUs, that one trial holds; lanes share them."""
    if study.config is None:
        return None, ""
    workers = study.config.workers
    unit = "GPU" if workers.resources.get("GPU") else "CPU"
    return workers.count * workers.resources.get(unit, 0.0) / workers.lanes, unit


def _seconds(study: Study, trial: Trial) -> float:
    """That it ran. One that was paused at rungs ran in several stretches, each with a clock of its own."""
    asha = study.config.search.asha if study.config else None
    if asha is None or trial.steps <= asha.grace_period:
        return trial.metrics.get("time/seconds", trial.seconds)
    _, clock = history(study, trial, "time/seconds")
    ends = np.append(clock[1:] < clock[:-1], True) if len(clock) else np.array([], dtype=bool)
    return float(clock[ends].sum())


def _tokens_per_step(study: Study) -> float | None:
    """Of a step's samples, padding aside."""
    kept, tokens = (float(study.tags.get(f"data/train/{name}", 0)) for name in ("kept", "tokens"))
    if study.config is None or not kept:
        return None
    return study.config.training.global_batch_size * tokens / kept
