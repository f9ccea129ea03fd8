"""README.md of a study's best model, as the Hugging Face hub shows it: how it was trained, and how it compares."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raysft import __version__
from raysft.config import HubSource, SweepConfig
from raysft.objectives import Selection
from raysft.redaction import redacted

if TYPE_CHECKING:
    from raysft.sweep.driver import StudyResult
    from raysft.sweep.ledger import TrialRow

CARD = "README.md"


def write_card(folder: Path, config: SweepConfig, result: "StudyResult") -> Path:
    """folder: of the best trial's model; config: the study's, made by for_backbone. result.best is not None."""
    assert result.best is not None
    path = folder / CARD
    path.write_text(redacted(card(config, result, result.best)), encoding="utf-8")
    return path


def card(config: SweepConfig, result: "StudyResult", best: "TrialRow") -> str:
    objective, training = best.trial.objective, config.training
    searched = [row for row in result.trials if row.trial.role != "confirm"]
    steps = f"{best.step} steps of {training.global_batch_size} samples, learning rate {best.trial.learning_rate:g}"
    return f"""---
{yaml.safe_dump(_front(config), sort_keys=False).strip()}
---

# {config.name}: {config.backbone.name}, fine-tuned with {objective.label()}

Fine-tuned from `{config.backbone.path}` by [raysft](https://arxiv.org/abs/2510.00526) {__version__}, which searched the
training objective: of {len(searched)} trials on this backbone and these data, this one had the best
{config.search.metric}.

## Objective

{formula(objective)}

| parameter | value |
|---|---|
{_rows({"type": objective.type, **objective.parameters(), **_interval(objective)})}

p is the probability of the target token. Trained for {steps}, seed {best.trial.seed}, {training.precision}.

## Results

{config.search.metric} on held-out data, one run each:

| objective | {config.search.metric} |
|---|---|
{_results(config.search.metric, result, best)}

Capability of the backbone, the mean probability that it gave the training targets before training:
{result.capability.mean_probability:.3f}.

## Data

- training: {_source(config.data.train)}
- held out: {_source(config.data.heldout or config.data.train)}
"""


def formula(objective: Selection) -> str:
    """The first paragraph of what the objective's class says of itself, which has its formula."""
    return (inspect.getdoc(type(objective)) or objective.label()).split("\n\n")[0].replace("\n", " ")


def _front(config: SweepConfig) -> dict[str, Any]:
    data = {"datasets": [config.data.train.path]} if isinstance(config.data.train, HubSource) else {}
    return {
        "base_model": config.backbone.path,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["raysft", "sft", *config.tracking.tags.values()],
        **data,
    }


def _interval(objective: Selection) -> dict[str, Any]:
    if objective.threshold is None:
        return {"learned from": "all tokens"}
    side = ">=" if objective.keep == "above" else "<="
    upper = "" if objective.upper is None else f" and p <= {objective.upper:.4g}"
    return {"learned from": f"tokens with p {side} {objective.threshold:.4g}{upper}"}


def _results(metric: str, result: "StudyResult", best: "TrialRow") -> str:
    """The baselines and the best trial."""
    shown = [row for row in result.trials if row.trial.role == "baseline" and row.trial_id != best.trial_id]
    values = {row.trial.objective.label(): row.metrics.get(metric) for row in shown}
    told = {name: "not finished" if value is None else f"{value:.4f}" for name, value in values.items()}
    return _rows({**told, f"**{best.trial.objective.label()}** (this model)": f"**{best.metrics[metric]:.4f}**"})


def _rows(cells: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {'none' if value is None else value} |" for key, value in cells.items())


def _source(source: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.model_dump(mode="json", exclude_none=True).items())
