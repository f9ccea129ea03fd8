"""The contracts of objectives: of the target's probability alone, or of the whole distribution over the vocabulary."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raysft.strict import Strict

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
Keep = Literal["above", "below"]
ThresholdUnit = Literal["probability", "quantile"]
Probability = Annotated[float, Field(ge=0, le=1)]


class Selection(Strict):
    """Which tokens an objective learns from: those with p in an interval (arXiv 2510.00526, Eq. 4), else all.

    `type` names the objective in sweep files; each subclass has its own.
    """

    type: str
    threshold: Probability | None = Field(default=None, description="tokens on the other side are not learned from")
    upper: Probability | None = Field(
        default=None, description="with keep above: tokens with p above this are not learned from either"
    )
    keep: Keep = Field(default="above", description="which side of the threshold is kept; the threshold itself is kept")
    threshold_unit: ThresholdUnit = Field(
        default="probability", description="quantile: of the base model's p on the training data, taken before training"
    )

    needs_reference: ClassVar[bool] = False  # the base model's logits beside the trained one's
    filled_in: ClassVar[frozenset[str]] = frozenset()  # parameters that follow from the probe: nothing to search

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.upper is not None:
            if self.threshold is None or self.keep == "below":
                raise ValueError("upper bounds what a threshold keeps above itself: set threshold, and keep to above")
            if self.upper < self.threshold:
                raise ValueError(f"upper ({self.upper:g}) must not be below threshold ({self.threshold:g})")
        return self

    @property
    def needs_sample_nll(self) -> bool:
        """Whether `at` must be given the losses of a step's samples."""
        return False

    @property
    def follows_from(self) -> float | None:
        """Where the running mean of p starts that `at` must be given; None: it needs none."""
        return None

    def at(
        self, progress: float, sample_nll: torch.Tensor | None = None, mean_probability: float | None = None
    ) -> Self:
        """The objective of one optimizer step.

        progress: the share of the training that is done, in [0, 1); sample_nll [samples]: mean -log p of each sample
        of the step over all ranks, where `needs_sample_nll`; mean_probability: the running mean of p over the steps
        before this one, where there is `follows_from`.
        """
        return self

    def keeps(self, logp: torch.Tensor) -> torch.Tensor:
        """Which tokens are learned from: log p [N] -> bool [N]. A NaN is kept: it must not vanish as a silent zero."""
        if self.threshold is None:
            import torch

            return torch.ones_like(logp, dtype=torch.bool)
        assert self.threshold_unit == "probability", "a quantile is turned into a probability before training"
        below = ~(logp > _log(self.threshold))
        if self.keep == "below":
            return below
        above = ~(logp < _log(self.threshold))
        return above if self.upper is None else above & ~(logp > _log(self.upper))

    def label(self) -> str:
        """A short readable name, e.g. `-p^10` or `exponent 0.5, p >= 0.2`."""
        return self._name() + self._interval_label()

    def slug(self) -> str:
        """The same for the name of a folder, e.g. `power-a1-above0.2`."""
        unit = "q" if self.threshold_unit == "quantile" else ""
        interval = "" if self.threshold is None else f"-{self.keep}{unit}{exact(self.threshold)}"
        return self._slug() + interval + ("" if self.upper is None else f"-to{exact(self.upper)}")

    def parameters(self) -> dict[str, Any]:
        """The values of what is this objective's own: type and interval aside."""
        return {name: value for name, value in self.model_dump().items() if name not in Selection.model_fields}

    def _name(self) -> str:
        own = self._changed()
        return self.type + (f" {', '.join(f'{k} {_short(v)}' for k, v in own.items())}" if own else "")

    def _slug(self) -> str:
        return "-".join([self.type, *(f"{name}{exact(value)}" for name, value in self._changed().items())])

    def _changed(self) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in self.parameters().items() if fields[k].is_required() or v != fields[k].default}

    def _interval_label(self) -> str:
        if self.threshold is None:
            return ""
        quantile = "quantile " if self.threshold_unit == "quantile" else ""
        if self.upper is not None:
            return f", {quantile}{self.threshold:.4g} <= p <= {quantile}{self.upper:.4g}"
        return f", p {'>=' if self.keep == 'above' else '<='} {quantile}{self.threshold:.4g}"


class Objective(Selection):
    """A function f of the target's probability p, per token (arXiv 2510.00526, Eq. 2).

    All methods take log p (never p, which rounds to 0 and 1), shape [N], and return shape [N] in its dtype. Tokens
    that `keeps` leaves out have loss 0 and weight 0. Of its own an objective must have `f`; where the source stops a
    gradient, f detaches.
    """

    @abstractmethod
    def f(self, logp: torch.Tensor) -> torch.Tensor:
        """f(p) of each token, finite for every log p <= 0: [N] -> [N]."""

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        """s(p) = -f'(p) p of each token: [N] -> [N]. By autograd, unless a subclass has it in closed form."""
        import torch

        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.f(leaf).sum(), leaf)
        return -gradient

    def loss(self, logp: torch.Tensor) -> torch.Tensor:
        """f(p) where p is kept, else 0: [N] -> [N]."""
        return self.f(logp).masked_fill(~self.keeps(logp), 0.0)

    def weight(self, logp: torch.Tensor) -> torch.Tensor:
        """s(p) where p is kept, else 0: [N] -> [N].

        The gradient with respect to the logits is s(p) (softmax - onehot) (Lemma 3.1), so s is all that a head needs.
        """
        return self.s(logp).masked_fill(~self.keeps(logp), 0.0)


@dataclass(frozen=True)
class Rows:
    """Predictions as a distribution objective sees them: logits [C, V], labels [C], reference logits [C, V] or None."""

    logits: torch.Tensor
    labels: torch.Tensor
    reference: torch.Tensor | None = None

    @cached_property
    def logprobs(self) -> torch.Tensor:
        """log softmax: [C, V]."""
        return self.logits.log_softmax(1)

    @cached_property
    def logp(self) -> torch.Tensor:
        """log p of the labels: [C], never above 0. The target is left out of the sum, which keeps digits at p -> 1."""
        import torch

        others = self.logits.scatter(1, self.labels[:, None], torch.finfo(self.logits.dtype).min).logsumexp(1)
        gap = self.of_labels(self.logits) - others
        return torch.nn.functional.logsigmoid(gap + 0 * gap)  # an infinite logit must not pass for p = 1

    def of_labels(self, values: torch.Tensor) -> torch.Tensor:
        """[C, V] -> [C]: the labels' entries."""
        return values.gather(1, self.labels[:, None]).squeeze(1)

    def softmax_minus_onehot(self) -> torch.Tensor:
        """[C, V]; the target's entry is expm1(log p) = -(1 - p), which rounds to nothing neither at 0 nor at 1."""
        return self.logprobs.exp().scatter(1, self.labels[:, None], self.logp.expm1()[:, None])


class DistributionObjective(Selection):
    """A loss that needs the whole distribution over the vocabulary, per token; computed in chunks of rows.

    Of its own an objective must have `token_loss`; where the source stops a gradient, it detaches.
    """

    @abstractmethod
    def token_loss(self, rows: Rows) -> torch.Tensor:
        """The loss of each row, differentiable in rows.logits: [C]."""

    def token_gradient(self, rows: Rows) -> torch.Tensor:
        """Its gradient with respect to the logits: [C, V]. By autograd, unless a subclass has it in closed form."""
        import torch

        with torch.enable_grad():
            leaf = rows.logits.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.token_loss(Rows(leaf, rows.labels, rows.reference)).sum(), leaf)
        return gradient


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def exact(value: Any) -> str:
    """With all the digits that tell two values apart."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
