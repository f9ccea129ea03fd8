"""The paper's family f(p) = (1 - p^a)/a (arXiv 2510.00526, Eq. 3); also known as GCE or Tsallis (arXiv 1805.07836)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from raysft.objectives.base import Objective, exact

if TYPE_CHECKING:
    import torch

# Only a negative exponent gets there, at p < e^(-40/|a|); its loss and weight are held constant below that p, so that
# hopeless tokens cannot make a step infinite: e^40 can be divided by a small |a|, summed and squared in fp32.
MAX_LOG = 40.0
NEGLIGIBLE = 1e-20  # an exponent this small is 0 to the last digit, and would underflow in fp32


class Power(Objective):
    """f(p) = (1 - p^a)/a, and -log p at a = 0; s(p) = p^a. The exponent may move while the model is trained."""

    type: Literal["power"] = "power"
    exponent: FiniteFloat = Field(default=0.0, description="a: 0 is -log p, 1 is -p; any real number")
    final_exponent: FiniteFloat | None = Field(
        default=None, description="where the exponent has moved to by the end of training; null: it stays"
    )
    schedule: Literal["linear", "cosine"] = Field(default="linear", description="how it moves, over the steps")

    @model_validator(mode="after")
    def _scheduled(self) -> Self:
        if self.schedule != "linear" and self.final_exponent is None:
            raise ValueError("schedule says how the exponent moves: give a final_exponent as well")
        return self

    def at(
        self, progress: float, sample_nll: torch.Tensor | None = None, mean_probability: float | None = None
    ) -> Self:
        if self.final_exponent is None:
            return self
        share = progress if self.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
        now = self.exponent + share * (self.final_exponent - self.exponent)
        return self.model_copy(update={"exponent": now, "final_exponent": None, "schedule": "linear"})

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        # a so small that a log p loses all digits against 1 is still exact: expm1 is what keeps them.
        return -logp if abs(self.exponent) < NEGLIGIBLE else -self._power(logp).expm1() / self.exponent

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return self._power(logp).exp()

    def _power(self, logp: torch.Tensor) -> torch.Tensor:
        return (self.exponent * logp).clamp(max=MAX_LOG)

    def _name(self) -> str:
        a = self.exponent
        if self.final_exponent is not None:
            return f"exponent {a:.4g} to {self.final_exponent:.4g}" + (", cosine" if self.schedule == "cosine" else "")
        return "nll" if a == 0 else "-p" if a == 1 else f"-p^{a:.4g}" if a > 1 else f"exponent {a:.4g}"

    def _slug(self) -> str:
        moving = "" if self.final_exponent is None else f"-to{exact(self.final_exponent)}-{self.schedule}"
        return f"power-a{exact(self.exponent)}{moving}"
