"""Other functions of p in closed form: log(1 - p), focal, Huber."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raysft.objectives.base import Objective

if TYPE_CHECKING:
    import torch

FLOOR = 1e-6  # of 1 - p in log(1 - p), which has no bound of its own


class LogOneMinusP(Objective):
    """f(p) = log(1 - p); s(p) = p/(1 - p), so the weight of the correct logit is W = p (arXiv 2510.00526, App. F).

    Even more prior-leaning than -p. It falls without bound as p -> 1, so below 1 - p = 1e-6 the loss is held constant
    and s at p/1e-6: there W falls to 0 instead of staying at 1.
    """

    type: Literal["log_one_minus_p"] = "log_one_minus_p"

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return self._one_minus_p(logp).log()

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return logp.exp() / self._one_minus_p(logp)

    def _one_minus_p(self, logp: torch.Tensor) -> torch.Tensor:
        return (-logp.expm1()).clamp(min=FLOOR)


class Focal(Objective):
    """f(p) = -(1 - p)^g log p; s(p) = (1 - p)^g - g p (1 - p)^(g - 1) log p (arXiv 1708.02002).

    More prior-averse than -log p (arXiv 2510.00526, App. F.2), which it is at g = 0.
    """

    type: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0, le=10)] = Field(default=2.0, description="g: 0 is -log p")

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return (-logp.expm1()) ** self.gamma * -logp

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        one_minus_p = -logp.expm1()
        # log p / (1 - p) goes to -1 at p = 1, where it would be 0/0.
        ratio = (logp / one_minus_p).masked_fill(logp == 0, -1.0)
        return one_minus_p**self.gamma * (1 - self.gamma * logp.exp() * ratio)


class Huber(Objective):
    """Huber's loss of e = 1 - p: e^2/2 for e <= d, else d e - d^2/2; s(p) = p min(e, d).

    arXiv 2510.00526, Eq. 37 and 38; prior-leaning. The source names no default of d.
    """

    type: Literal["huber"] = "huber"
    delta: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="d: where the square turns linear")

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        error = -logp.expm1()
        near = error.clamp(max=self.delta)
        return near * (error - near / 2)

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return logp.exp() * (-logp.expm1()).clamp(max=self.delta)
