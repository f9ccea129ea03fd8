"""What is searched for, how the answer is made sure, and where runs are logged: probe, search, confirm, tracking."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysft.config.evaluation import TASK_NAME
from raysft.strict import Name, Strict


class ProbeConfig(Strict):
    samples: int = Field(default=512, gt=0, description="training samples that capability is measured on")


class AshaConfig(Strict):
    """Rungs at grace_period x reduction_factor^k steps, where searched trials are paused and the best go on."""

    grace_period: int = Field(gt=0, description="steps that every trial gets; a multiple of evaluation.every")
    reduction_factor: int = Field(default=4, gt=1, description="n: the best 1/n of a rung get n times its steps")


METRIC_MODES: dict[str, Literal["max", "min"]] = {
    "eval/accuracy": "max",
    "eval/nll": "min",
    "eval/mean_probability": "max",
}
TASK_METRIC = re.compile(rf"eval/({TASK_NAME})/accuracy")


class SearchConfig(Strict):
    trials: int | None = Field(
        default=16,
        ge=0,
        description="searched trials of a backbone, besides the baselines; of a grid the first so many, null (with it "
        "the default): all of it",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="grid: every combination of the space's lists once, in a fixed order"
    )
    advice: bool = Field(
        default=True,
        description="with an accuracy as metric, the first searched trials are those that are advised; not in a grid",
    )
    metric: str = Field(
        default="eval/accuracy", description="eval/accuracy, eval/nll, eval/mean_probability, or eval/TASK/accuracy"
    )
    asha: AshaConfig | None = Field(default=None, description="pause trials at rungs and promote the best; null: none")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _whole_grid(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sampler") == "grid":
            return {"trials": None, **values}
        return values

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.trials is None and self.sampler != "grid":
            raise ValueError(f"trials null means a whole grid: give the sampler {self.sampler} a number of trials")
        return self

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRIC_MODES and not TASK_METRIC.fullmatch(metric):
            known = ", ".join(f"'{name}'" for name in METRIC_MODES)
            raise ValueError(f"must be {known} or 'eval/TASK/accuracy', not '{metric}'")
        return metric

    @property
    def mode(self) -> Literal["max", "min"]:
        return METRIC_MODES.get(self.metric, "max")

    @property
    def task(self) -> str | None:
        """The task whose accuracy the metric is."""
        found = TASK_METRIC.fullmatch(self.metric)
        return found[1] if found else None


class ConfirmConfig(Strict):
    """After the search, its winner and the paper's baselines again, judged on problems that the search never saw."""

    seeds: int = Field(default=3, gt=0, description="of each, other ones than the search's; may be raised later")
    share: float = Field(
        default=0.5, gt=0, lt=1, description="of the held-out problems, and of each task's, that are kept for this"
    )


OWN_TAGS = re.compile(
    r"sweep|backbone|role|quantile|upper_quantile|stop_reason|best_.*|(mlflow|raysft)\..*|(data|version)/.*"
)
Tag = Annotated[str, Field(min_length=1, max_length=500)]


class TrackingConfig(Strict):
    uri: str | None = Field(default=None, description="MLflow tracking URI; null: sqlite under the output folder")
    tags: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w./ -]*$", max_length=100)], Tag] = Field(
        default={}, description="of every run, to filter by, e.g. domain: math"
    )
    register_as: Name | None = Field(
        default=None,
        description="registers the model of each backbone's best trial in MLflow, as NAME-BACKBONE; null: does not",
    )

    @field_validator("tags")
    @classmethod
    def _free(cls, tags: dict[str, str]) -> dict[str, str]:
        if taken := next((key for key in tags if OWN_TAGS.fullmatch(key)), None):
            raise ValueError(f"'{taken}' is a tag that raysft or MLflow sets itself: give yours another name")
        if path := next((key for key in tags if {"", ".", ".."}.intersection(key.split("/"))), None):
            raise ValueError(f"'{path}' has a part between slashes that is empty or dots, which MLflow refuses")
        return tags
