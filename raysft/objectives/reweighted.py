"""-log p with a weight of p that gets no gradient: s(p) is that weight."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from raysft.objectives.base import Objective

if TYPE_CHECKING:
    import torch


class Reweighted(Objective):
    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return self.s(logp.detach()) * -logp

    @abstractmethod
    def s(self, logp: torch.Tensor) -> torch.Tensor:
        """The weight: [N] -> [N]."""


class DFT(Reweighted):
    """sg(p) (-log p), dynamic fine-tuning (arXiv 2508.05629): the gradient of -p, with another value of the loss."""

    type: Literal["dft"] = "dft"

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return logp.exp()


class TALR(Reweighted):
    """sg(max(p^(1/t), floor)) (-log p), token-adaptive loss reweighting (arXiv 2509.20758).

    Without a given t, it is the median over a step's samples of their mean -log p under the current model (the lower
    of the two middle ones, as in torch), which takes one more forward pass a step. Accounts of the source differ in
    whether the median goes over tokens or over samples; this is the latter.
    """

    type: Literal["talr"] = "talr"
    temperature: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="t; null: the median over each step's samples of their mean -log p"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = Field(default=0.01, description="smallest weight of a token")

    @property
    def needs_sample_nll(self) -> bool:
        return self.temperature is None

    def at(
        self, progress: float, sample_nll: torch.Tensor | None = None, mean_probability: float | None = None
    ) -> Self:
        if self.temperature is not None:
            return self
        assert sample_nll is not None
        return self.model_copy(update={"temperature": max(float(sample_nll.median()), 1e-6)})

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        assert self.temperature is not None, "call `at` with the losses of the step's samples first"
        return (logp / self.temperature).exp().clamp(min=self.floor)


class InfoSFT(Reweighted):
    """sg(p [1 - logit(p)/logit(P)]_+) (-log p): nothing is learned from tokens with p above P (arXiv 2605.14967)."""

    type: Literal["infosft"] = "infosft"
    ceiling: Annotated[float, Field(gt=0.5, lt=1)] = Field(default=0.93, description="P")

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        logit = logp - (-logp.expm1()).log()  # +inf at p = 1, where the weight is 0
        known = logit / (math.log(self.ceiling) - math.log1p(-self.ceiling))
        return logp.exp() * (1 - known).clamp(min=0)
