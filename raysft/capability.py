"""What a probe says of a backbone, and the thresholds that follow from it. Imports neither torch nor ray."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from raysft.config import TrialConfig

CONFIDENT = 0.55  # the probability in Assumption 6.1 of arXiv 2510.00526
LEVELS = np.linspace(0, 1, 101)
BINS = 20


@dataclass(frozen=True)
class Capability:
    """Of the target's p over `tokens` supervised tokens of `samples` samples.

    mean_probability: its mean (Eq. 5 of arXiv 2510.00526); mean_logp: the mean of log p, in nats; share_above: the
    share of tokens with p >= .55; quantiles: p at 0 %, 1 %, ..., 100 %; histogram: tokens in 20 equal bins of [0, 1].
    """

    mean_probability: float
    mean_logp: float
    share_above: float
    tokens: int
    samples: int
    quantiles: list[float]
    histogram: list[int]

    def quantile(self, q: float) -> float:
        """The p that a share q of the tokens does not exceed, linear between percents; ValueError outside [0, 1]."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies in [0, 1], not at {q}")
        return float(np.interp(q, LEVELS, self.quantiles))

    def level(self, p: float) -> float:
        """The share of tokens whose probability is at most p: the inverse of `quantile`, linear between percents."""
        at = int(np.searchsorted(self.quantiles, p, side="right")) - 1  # the last one that does not exceed p
        if at < 0:
            return 0.0
        if at == len(self.quantiles) - 1:
            return 1.0
        low, high = self.quantiles[at : at + 2]
        return float(LEVELS[at] + (p - low) / (high - low) * (LEVELS[at + 1] - LEVELS[at]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def resolve_threshold(trial: TrialConfig, capability: Capability) -> TrialConfig:
    """The trial with quantiles replaced by those of the base model's p (arXiv 2510.00526, Sec. 5.1)."""
    objective = trial.objective
    probability: dict[str, Any] = {"threshold_unit": "probability"}
    if objective.threshold is None or objective.threshold_unit == "probability":
        return trial.model_copy(update={"objective": objective.model_copy(update=probability)})
    update: dict[str, Any] = {"quantile": objective.threshold}
    probability["threshold"] = capability.quantile(objective.threshold)
    if objective.upper is not None:
        update["upper_quantile"] = objective.upper
        probability["upper"] = capability.quantile(objective.upper)
    return trial.model_copy(update={**update, "objective": objective.model_copy(update=probability)})
