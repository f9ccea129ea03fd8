"""The paper's family f(p) = (1 - p^a)/a with an optional threshold (arXiv 2510.00526, Eq. 3 and 4)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from raysft.errors import InputError
from raysft.objectives.base import Objective, register

# Only a negative exponent gets there, at p < e^(-40/|a|); its loss and weight are held constant below that p, so that
# hopeless tokens cannot make a step infinite: e^40 can be divided by a small |a|, summed and squared in fp32.
MAX_LOG = 40.0
NEGLIGIBLE = 1e-20  # an exponent this small is 0 to the last digit, and would underflow in fp32


@register("power")
@dataclass(frozen=True)
class Power(Objective):
    """f(p) = (1 - p^a)/a, and -log p at a = 0; s(p) = p^a.

    exponent: a, any real number. threshold: None, or a probability in [0, 1]; with keep "above" only tokens with
    p >= threshold are learned from, with "below" only those with p <= threshold, p being the current model's.
    """

    exponent: float = 0.0
    threshold: float | None = None
    keep: Literal["above", "below"] = "above"

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise InputError("objective 'power'", f"exponent is {self.exponent}.", "Give a finite number.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError("objective 'power'", f"threshold is {self.threshold}.", "Give a probability in [0, 1].")
        if self.keep not in ("above", "below"):
            raise InputError("objective 'power'", f"keep is '{self.keep}'.", "Give 'above' or 'below'.")

    def loss(self, logp: torch.Tensor) -> torch.Tensor:
        # a so small that a log p loses all digits against 1 is still exact: expm1 is what keeps them.
        full = -logp if abs(self.exponent) < NEGLIGIBLE else -torch.expm1(self._power(logp)) / self.exponent
        return torch.where(self.keeps(logp), full, torch.zeros_like(full))

    def weight(self, logp: torch.Tensor) -> torch.Tensor:
        full = torch.ones_like(logp) if self.exponent == 0 else torch.exp(self._power(logp))
        return torch.where(self.keeps(logp), full, torch.zeros_like(full))

    def keeps(self, logp: torch.Tensor) -> torch.Tensor:
        if self.threshold is None:
            return super().keeps(logp)
        edge = math.log(self.threshold) if self.threshold > 0 else -math.inf
        return logp >= edge if self.keep == "above" else logp <= edge

    def _power(self, logp: torch.Tensor) -> torch.Tensor:
        return (self.exponent * logp).clamp(max=MAX_LOG)
