"""The trained models of a study that has ended: which are kept, the best one's card, and its registration."""

from typing import TYPE_CHECKING

from raysft.config import SweepConfig
from raysft.modelcard import write_card
from raysft.store import Store
from raysft.tracking import Study

if TYPE_CHECKING:
    from raysft.sweep.driver import StudyResult


def keep_models(config: SweepConfig, trials: Store, result: "StudyResult", tracked: Study) -> None:
    """trials: of the study. With `export: best` the other models go; the best one gets a card, and is registered where
    the file asks for it. May be repeated.
    """
    best = result.best
    if config.export == "best":
        for row in result.trials:
            if row is not best:
                trials.remove(trials.folder / row.trial_id / "model")
    if best is None:
        return
    trials.pull(model := trials.folder / best.trial_id / "model")
    if not model.is_dir():
        return
    trials.push(write_card(model, config, result))
    if config.tracking.register_as:
        metric = config.search.metric
        facts = {"objective": best.trial.objective.label(), "capability": f"{result.capability.mean_probability:.4f}"}
        tracked.register(best.trial_id, model, {**facts, "metric": metric, metric: f"{best.metrics[metric]:.4f}"})
