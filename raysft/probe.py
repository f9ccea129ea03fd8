"""How capable a backbone already is on a data set: the target's probability over its supervised tokens."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.data.batch import Collate
from raysft.data.tokenized import TokenizedData
from raysft.evaluation.forward import batch_logps, spread
from raysft.ranks import Ranks

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


def probe(
    model: PreTrainedModel,
    data: TokenizedData,
    samples: int,
    budget: int,
    collate: Collate,
    ranks: Ranks,
    device: torch.device,
) -> Capability:
    """The capability of `model`, which lies on `device`, on `samples` samples at an even stride over `data`.

    budget: tokens of a batch. Collective; the same on every rank, and bitwise the same in a group of any size.
    """
    indices = spread(len(data), samples)
    mine = batch_logps(model, data, indices, budget, collate, ranks, device)
    gathered = [batch for part in ranks.gather([logp.astype(np.float32) for logp in mine]) for batch in part]
    logp = np.sort(np.concatenate(gathered).astype(np.float64))  # sorted, so that sums do not depend on the ranks
    p = np.exp(logp)
    return Capability(
        mean_probability=float(p.mean()),
        mean_logp=float(logp.mean()),
        share_above=float((p >= CONFIDENT).mean()),
        tokens=p.size,
        samples=len(indices),
        quantiles=np.quantile(p, LEVELS).tolist(),
        histogram=np.histogram(p, bins=BINS, range=(0, 1))[0].tolist(),
    )
