"""Successive halving (ASHA, arXiv 1810.05934): trials that fall behind are stopped early."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from raysft.config import SearchConfig
from raysft.sweep.ledger import Ledger

NEVER = 10**9  # steps; a trial's end is the trainer's business


class Halving(ASHAScheduler):
    """Tune's ASHA, which knows trials by the ledger's ids, so that one that is resumed counts once in each rung."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def scheduler(search: SearchConfig, ledger: Ledger) -> TrialScheduler | None:
    """The study's scheduler, which has seen what trials recorded before an interruption; None where none is wanted."""
    if search.asha is None:
        return None
    halving = Halving(
        time_attr="step",
        metric=search.metric,
        mode=search.mode,
        grace_period=search.asha.grace_period,
        reduction_factor=search.asha.reduction_factor,
        max_t=NEVER,
    )
    seen = [
        (when, step, row.trial_id, value)
        for row in ledger.rows()
        for step, (when, value) in ledger.values(row.trial_id, search.metric).items()
    ]
    for trial_id in {trial_id for _, _, trial_id, _ in seen}:
        halving.on_trial_add(None, _stand_in(trial_id))
    for _, step, trial_id, value in sorted(seen):
        halving.on_trial_result(None, _stand_in(trial_id), {"step": step, search.metric: value})
    return halving


def _stand_in(trial_id: str) -> SimpleNamespace:
    return SimpleNamespace(config={"trial_id": trial_id})


def _named(trial: Any) -> Any:
    """What ASHA asks of a trial."""
    return SimpleNamespace(trial_id=trial.config["trial_id"])
