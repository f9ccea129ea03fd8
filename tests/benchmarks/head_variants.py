"""What the benchmark of the loss head compares: inputs, the ways to the same loss and gradients, and a lower bound."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, linear_cross_entropy

from raysft.objectives.base import IGNORE_INDEX
from raysft.objectives.head import linear_objective
from raysft.objectives.power import Power
from raysft.objectives.projection import _product

HALF = torch.bfloat16
# Of logit(p) over the rows: 40 % of the targets get p >= .9, 20 % p <= .1, as in a model in the midst of training.
LOGIT_MEAN, LOGIT_STD = 1.18, 4.02
TRL_CHUNK = 256  # its own default


class Shape(NamedTuple):
    rows: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Case:
    """hidden [N, H] and weight [V, H], leaves that want a gradient; labels [N], half of them -100."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        hidden, weight = (t.detach().to(dtype).requires_grad_() for t in (self.hidden, self.weight))
        return Case(hidden, weight, self.labels)

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def supervised(self) -> torch.Tensor:
        """hidden of the rows with a label: [R, H]."""
        return self.hidden.detach()[self.labels != IGNORE_INDEX]


def make_case(shape: Shape, device: str, seed: int = 0) -> Case:
    """fp32 inputs whose targets' probabilities are spread over (0, 1): noise + c weight[label] / |weight[label]|."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=rng).mul_(shape.hidden**-0.5)
    hidden = torch.randn(shape.rows, shape.hidden, generator=rng)
    labels = torch.randint(shape.vocabulary, (shape.rows,), generator=rng)
    norms = weight[labels].norm(dim=1)
    # The noise alone moves the target's logit with variance 1; c has to supply the rest of the wanted variance.
    wanted = LOGIT_MEAN + math.sqrt(LOGIT_STD**2 - 1) * torch.randn(shape.rows, generator=rng)
    c = torch.zeros(shape.rows)
    for _ in range(3):  # the other logits are normal with variance 1 + c^2/H: their logsumexp depends on c a little
        c = (wanted + math.log(shape.vocabulary) + (1 + c**2 / shape.hidden) / 2) / norms
    hidden += (c / norms)[:, None] * weight[labels]
    labels[torch.randperm(shape.rows, generator=rng)[: shape.rows // 2]] = IGNORE_INDEX
    return Case(hidden.to(device).requires_grad_(), weight.to(device).requires_grad_(), labels.to(device))


Forward = Callable[[Case, Power], torch.Tensor]  # the summed loss


def naive(case: Case, objective: Power) -> torch.Tensor:
    """What trainers do: all rows projected, logits raised to fp32 (if below), and autograd."""
    logits = linear(case.hidden, case.weight)
    if logits.dtype == HALF:
        logits = logits.float()
    supervised = case.labels != IGNORE_INDEX
    logp = logits.log_softmax(1).gather(1, case.labels.clamp(min=0)[:, None]).squeeze(1)
    return objective.loss(logp).masked_fill(~supervised, 0.0).sum()


def torch_chunked(case: Case, objective: Power) -> torch.Tensor:
    # Without options it is the naive way; with them it goes in chunks of its own choice.
    options = torch.nn.LinearCrossEntropyOptions()
    return linear_cross_entropy(case.hidden, case.weight, case.labels, reduction="sum", options=options)


def trl_chunked(case: Case, objective: Power) -> torch.Tensor:
    from trl.trainer.sft_trainer import _chunked_cross_entropy_loss

    hidden, labels = case.hidden[None], case.labels[None]
    loss, *_ = _chunked_cross_entropy_loss(hidden, case.weight, TRL_CHUNK, shift_labels=labels, num_items_in_batch=1)
    return loss


def liger(case: Case, objective: Power) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(case.hidden, case.weight, case.labels, reduction="sum")


def raysft(case: Case, objective: Power) -> torch.Tensor:
    return linear_objective(case.hidden, case.weight, case.labels, objective)[0]


def autocast(forward: Forward) -> Forward:
    def under_autocast(case: Case, objective: Power) -> torch.Tensor:
        with torch.autocast(case.hidden.device.type, HALF):
            return forward(case, objective)

    return under_autocast


@dataclass(frozen=True)
class Variant:
    """One way to the loss and its gradients. exponents: those it is run with, without thresholds; None: everything."""

    name: str
    forward: Forward
    dtype: torch.dtype = torch.float32  # of hidden and weight
    exponents: tuple[float, ...] | None = None
    module: str | None = None  # that has to be installed
    cuda_only: bool = False
    once_from: float = math.inf  # the vocabulary from which one call is all that time allows

    @property
    def half(self) -> bool:
        """Whether its products are in bf16."""
        return "bf16" in self.name

    def does(self, objective: Power) -> bool:
        return self.exponents is None or (objective.threshold is None and objective.exponent in self.exponents)

    def step(self, case: Case, objective: Power) -> torch.Tensor:
        loss = self.forward(case, objective)
        loss.backward()
        return loss.detach()


TRL, LIGER = "trl.trainer.sft_trainer", "liger_kernel.transformers.functional"
VARIANTS = [
    Variant("naive fp32", naive),
    Variant("naive bf16 autocast", autocast(naive), exponents=(0, 1)),
    Variant("torch linear_cross_entropy", torch_chunked, exponents=(0,), once_from=100_000),
    Variant("trl chunked fp32", trl_chunked, exponents=(0,), module=TRL),
    Variant("trl chunked bf16", trl_chunked, HALF, exponents=(0,), module=TRL),
    Variant("liger fp32", liger, exponents=(0,), module=LIGER, cuda_only=True),
    Variant("liger bf16", liger, HALF, exponents=(0,), module=LIGER, cuda_only=True),
    Variant("raysft fp32", raysft),
    Variant("raysft bf16", raysft, HALF),
    Variant("raysft bf16 autocast", autocast(raysft), exponents=(0, 1)),
]


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds that the call takes."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


# The bound: nothing but the three products, by the fastest call and tile of the vocabulary that can be found for each.
BLOCK = 512  # rows at once
TILES = (2048, 4096, 8192, 32768)
CALIBRATED = 32768  # columns of the vocabulary on which calls and tiles are tried out
PRODUCTS = ("logits", "grad_hidden", "grad_weight")


def _onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dtype == torch.float32:
        return _product(a, b)
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # a [M, K], b [K, N] -> a @ b
CALLS: dict[str, Product] = {"mm": torch.mm, "F.linear": lambda a, b: linear(a, b.t()), "oneDNN linear": _onednn}


def add_product(call: str, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, fresh: bool) -> None:
    """out = a @ b if fresh, whatever out holds, else out += a @ b."""
    if call == "mm":
        out.addmm_(a, b, beta=0 if fresh else 1)
    elif fresh:
        out.copy_(CALLS[call](a, b))
    else:
        out.add_(CALLS[call](a, b))


@dataclass
class Bound:
    """The three products alone over rows [R, H] and weight [V, H]; choice: product -> (call, width of the tiles)."""

    name: str
    rows: torch.Tensor
    weight: torch.Tensor
    choice: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One gradient of the logits for all tiles, which stays in the caches: no fused kernel could have it cheaper.
        self.gradient = torch.randn(BLOCK, max(TILES), device=self.weight.device).to(self.weight.dtype)
        self.choice = self.choice or {product: self._fastest(product) for product in PRODUCTS}

    def step(self, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of all rows; gradients of the rows `live` [L, H] and, freshly allocated, of the weight."""
        for x in self.rows.split(BLOCK):
            self._logits(x, self.weight, *self.choice["logits"])
        grad_rows, grad_weight = torch.empty_like(live), torch.empty_like(self.weight)
        for at, x in enumerate(live.split(BLOCK)):
            self._grad_hidden(grad_rows[at * BLOCK :][:BLOCK], self.weight, *self.choice["grad_hidden"])
            self._grad_weight(grad_weight, x, *self.choice["grad_weight"], fresh=at == 0)
        return grad_rows, grad_weight

    def _logits(self, x: torch.Tensor, weight: torch.Tensor, call: str, width: int) -> None:
        for tile in weight.split(width):
            CALLS[call](x, tile.t())

    def _grad_hidden(self, out: torch.Tensor, weight: torch.Tensor, call: str, width: int) -> None:
        for at, tile in enumerate(weight.split(width)):
            add_product(call, out, self.gradient[: len(out), : len(tile)], tile, fresh=at == 0)

    def _grad_weight(self, out: torch.Tensor, x: torch.Tensor, call: str, width: int, fresh: bool) -> None:
        for tile in out.split(width):
            add_product(call, tile, self.gradient[: len(x), : len(tile)].t(), x, fresh)

    def _fastest(self, product: str) -> tuple[str, int]:
        device = self.weight.device.type
        onednn = device == "cpu" and torch.backends.mkldnn.is_available()
        if self.weight.dtype == torch.bfloat16:
            onednn = onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        x, weight = self.rows[:BLOCK], self.weight[:CALIBRATED]
        out = torch.zeros_like(x if product == "grad_hidden" else weight)
        one_block = len(self.rows) <= BLOCK  # then nothing is ever added to the weight's gradient

        def once(call: str, width: int) -> None:
            if product == "logits":
                self._logits(x, weight, call, width)
            elif product == "grad_hidden":
                self._grad_hidden(out, weight, call, width)
            else:
                self._grad_weight(out, x, call, width, fresh=one_block)

        widths = sorted({min(width, len(weight)) for width in TILES})
        options = [(call, width) for call in CALLS if onednn or call != "oneDNN linear" for width in widths]
        seconds = {option: min(timed(partial(once, *option), device) for _ in range(3)) for option in options}
        return min(seconds, key=lambda option: seconds[option])
