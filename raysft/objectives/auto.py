"""The paper's family with an exponent that the probe picks, and that may follow the training."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from raysft.objectives.base import Objective, Probability, exact
from raysft.objectives.power import Power

if TYPE_CHECKING:
    import torch


def _parsed(value: Any) -> Any:
    """A path that was stored as text, as parameters in MLflow are."""
    return json.loads(value) if isinstance(value, str) else value


Waypoint = tuple[Annotated[float, Field(gt=0, lt=1)], FiniteFloat]  # mean of p, exponent


Path = Annotated[tuple[Waypoint, ...], BeforeValidator(_parsed)]


class Auto(Objective):
    """f(p) = (1 - p^a)/a with the exponent that is advised for the backbone's capability (`raysft.advisor`).

    With `follow` the exponent moves on with the running mean of p over the training's steps, as far as the advice for
    that capability differs. What is null is filled in between the probe and the training.
    """

    type: Literal["auto"] = "auto"
    follow: bool = Field(default=False, description="the exponent moves with the mean of p while the model is trained")
    exponent: FiniteFloat | None = Field(default=None, description="a; null: as advised for the backbone's capability")
    capability: Probability | None = Field(default=None, description="where the running mean of p starts; null: probed")
    path: Annotated[tuple[Waypoint, ...], BeforeValidator(_parsed)] = Field(
        default=(), description="mean of p and its exponent, of follow; empty: advised"
    )

    filled_in: ClassVar[frozenset[str]] = frozenset({"exponent", "capability", "path"})

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(left >= right for (left, _), (right, _) in pairwise(self.path)):
            raise ValueError("path goes by ascending means of p: sort it, each mean once")
        return self

    @property
    def follows_from(self) -> float | None:
        return self.capability if self.follow else None

    def with_advice(self, capability: float, exponent: float, path: tuple[Waypoint, ...]) -> Self:
        """The same with what was left open filled in."""
        advised = {"exponent": exponent, "capability": capability, "path": path}
        left_open = {name for name in advised if getattr(self, name) in (None, ())}
        if not self.follow:
            left_open &= {"exponent"}
        return self.model_copy(update={name: advised[name] for name in left_open})

    def at(
        self, progress: float, sample_nll: torch.Tensor | None = None, mean_probability: float | None = None
    ) -> Self:
        if mean_probability is None or not self.path:
            return self
        now = exponent_at(self.path, mean_probability)
        return self.model_copy(update={"exponent": now, "follow": False, "capability": None, "path": ()})

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return self._power().f(logp)

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return self._power().s(logp)

    def _power(self) -> Power:
        assert self.exponent is not None, "the exponent is filled in before training"
        return Power(exponent=self.exponent)

    def _name(self) -> str:
        picked = [] if self.exponent is None else [f"exponent {self.exponent:.4g}"]
        return ", ".join(["auto", *picked, *(["following"] if self.follow else [])])

    def _slug(self) -> str:
        picked = [] if self.exponent is None else [f"a{exact(self.exponent)}"]
        return "-".join(["auto", *picked, *(["follow"] if self.follow else [])])


def exponent_at(path: tuple[Waypoint, ...], mean_probability: float) -> float:
    """Between two waypoints in proportion, by the logit of the mean and a/(1 + a); the nearest one beyond them."""
    p = min(max(mean_probability, path[0][0]), path[-1][0])
    right = next((i for i, (level, _) in enumerate(path) if level >= p), 0)
    if right == 0:
        return path[0][1]
    (low, first), (high, second) = path[right - 1], path[right]
    share = (_logit(p) - _logit(low)) / (_logit(high) - _logit(low))
    return first + share * (second - first)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
