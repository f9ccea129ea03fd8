"""An objective that holds on to the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from raysft.objectives.base import DistributionObjective, Rows

if TYPE_CHECKING:
    import torch


class ASFT(DistributionObjective):
    """sg(p) (-log p) + l KL(reference || model), anchored fine-tuning (arXiv 2509.23753).

    The reference is the base model; KL goes over the whole vocabulary at each kept token, in the direction of the
    authors' code.
    """

    type: Literal["asft"] = "asft"
    kl_weight: Annotated[float, Field(ge=0, le=100)] = Field(default=0.1, description="l: 0 is dft")

    needs_reference: ClassVar[bool] = True

    def token_loss(self, rows: Rows) -> torch.Tensor:
        reference = self._reference(rows)
        divergence = (reference.exp() * (reference - rows.logprobs)).sum(1)
        return rows.logp.detach().exp() * -rows.logp + self.kl_weight * divergence

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        pulled = rows.softmax_minus_onehot() * rows.logp.exp()[:, None]
        return pulled + self.kl_weight * (rows.logprobs.exp() - self._reference(rows).exp())

    def _reference(self, rows: Rows) -> torch.Tensor:
        assert rows.reference is not None, "asft needs the base model's logits"
        return rows.reference.log_softmax(1)
