"""Objectives that look at the whole distribution over the vocabulary, not at the target's probability alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raysft.objectives.base import DistributionObjective, Rows

if TYPE_CHECKING:
    import torch

GEM_SHARPNESS = 0.01  # of the logistic link in the authors' code


class EAFT(DistributionObjective):
    """sg((H_k / ln k)^a) (-log p), entropy-adaptive fine-tuning (arXiv 2601.02151, Eq. 3).

    H_k is the entropy of the softmax over the k largest logits. The source divides by 3.0 for ln 20 = 2.996.
    """

    type: Literal["eaft"] = "eaft"
    alpha: Annotated[float, Field(ge=0, le=10)] = Field(default=1.0, description="a: 0 is -log p")
    top_k: Annotated[int, Field(ge=2, le=1000)] = Field(default=20, description="k")

    def token_loss(self, rows: Rows) -> torch.Tensor:
        return self._weight(rows) * -rows.logp

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        return rows.softmax_minus_onehot() * self._weight(rows)[:, None]

    def _weight(self, rows: Rows) -> torch.Tensor:
        top = rows.logits.detach().topk(min(self.top_k, rows.logits.shape[1]), dim=1).values
        gaps = top - top[:, :1]
        # log sum_v e^(gap) without the 1 of the largest, so that a nearly certain distribution keeps its digits.
        entropy = gaps[:, 1:].exp().sum(1).log1p() - (gaps.softmax(1) * gaps).sum(1)
        return (entropy / math.log(self.top_k)) ** self.alpha


class DEFT(DistributionObjective):
    """(1 - p^a)/a with a = sg(sum_v p_v^2) of each token's own distribution (arXiv 2602.11424)."""

    type: Literal["deft"] = "deft"

    def token_loss(self, rows: Rows) -> torch.Tensor:
        exponent = self._exponent(rows)
        return -(exponent * rows.logp).expm1() / exponent

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        return rows.softmax_minus_onehot() * (self._exponent(rows) * rows.logp).exp()[:, None]

    def _exponent(self, rows: Rows) -> torch.Tensor:
        return (2 * rows.logprobs.detach()).logsumexp(1).exp()  # never below 1/V


class GEM(DistributionObjective):
    """sum_v sg(q_v w_v) (z_v - z_y), q = softmax(z/b) (arXiv 2408.16673).

    link linear: w = 1, and the logits' gradient is q - onehot; logsigmoid: w = sigmoid(0.01 (z_v - z_y)).
    """

    type: Literal["gem"] = "gem"
    beta: Annotated[float, Field(gt=0, le=1)] = Field(default=0.7, description="b: 1 has the gradient of -log p")
    link: Literal["linear", "logsigmoid"] = Field(default="linear", description="how the logits' gaps are weighted")

    def token_loss(self, rows: Rows) -> torch.Tensor:
        gaps = rows.logits - rows.of_labels(rows.logits)[:, None]
        return (self._weights(rows) * gaps).sum(1)

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        weights = self._weights(rows).scatter(1, rows.labels[:, None], 0.0)  # the gap of the target to itself is 0
        return weights.scatter(1, rows.labels[:, None], -weights.sum(1, keepdim=True))

    def _weights(self, rows: Rows) -> torch.Tensor:
        logits = rows.logits.detach()
        q = (logits / self.beta).softmax(1)
        if self.link == "linear":
            return q
        return q * (GEM_SHARPNESS * (logits - rows.of_labels(logits)[:, None])).sigmoid()


class LabelSmoothing(DistributionObjective):
    """(1 - e) (-log p) + e mean_v(-log p_v) (arXiv 1512.00567)."""

    type: Literal["label_smoothing"] = "label_smoothing"
    epsilon: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="e: 0 is -log p")

    def token_loss(self, rows: Rows) -> torch.Tensor:
        return (self.epsilon - 1) * rows.logp - self.epsilon * rows.logprobs.mean(1)

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        smoothed = rows.softmax_minus_onehot() - self.epsilon / rows.logits.shape[1]
        target = rows.of_labels(smoothed) + self.epsilon
        return smoothed.scatter(1, rows.labels[:, None], target[:, None])
