"""The trained models of a study that has ended: which are kept, the best one's card, and its registration."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raysft.config import SweepConfig
from raysft.modelcard import write_card
from raysft.tracking import Study

if TYPE_CHECKING:
    from raysft.sweep.driver import StudyResult


def keep_models(config: SweepConfig, folder: Path, result: "StudyResult", tracked: Study) -> None:
    """folder: of the study. With `export: best` the other models go; the best one gets a card, and is registered where
    the file asks for it. May be repeated.
    """
    best = result.best
    if config.export == "best":
        for model in folder.glob("trials/*/model"):
            if best is None or model.parent.name != best.trial_id:
                shutil.rmtree(model, ignore_errors=True)
    if best is None or not (model := folder / "trials" / best.trial_id / "model").is_dir():
        return
    write_card(model, config, result)
    if config.tracking.register_as:
        metric = config.search.metric
        facts = {"objective": best.trial.objective.label(), "capability": f"{result.capability.mean_probability:.4f}"}
        tracked.register(best.trial_id, model, {**facts, "metric": metric, metric: f"{best.metrics[metric]:.4f}"})
