"""The loss head: hidden states x output weight -> objective, without ever holding the [N, V] logits.

One pass over chunks of the supervised rows gives the loss and all gradients: three matrix products per chunk, nothing
kept between chunks but the gradients themselves.

For an objective of the target's probability alone, the softmax over the *other* tokens carries everything. With
q_j = softmax over j != y, and u = z_y - logsumexp(z_j, j != y), the gradient with respect to the logits is
W(p) (q - onehot) with W(p) = s(p) (1 - p) (arXiv 2510.00526, Lemma 3.1), log p = logsigmoid(u), 1 - p = sigmoid(-u):
neither p -> 0 nor p -> 1 loses a digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, logsigmoid

from raysft.objectives.base import IGNORE_INDEX, DistributionObjective, Objective, Rows
from raysft.objectives.projection import Gradients, Projection

# Rows of a chunk, by the bytes of an operand. On a CPU, 112 rows in fp32 take 1/100 of what full logits need at 4,096
# rows; on CUDA more, because there only large products are fast.
CHUNK_ROWS = {"cpu": {2: 256, 4: 112, 8: 112}, "cuda": {2: 1024, 4: 512, 8: 512}}

HeadOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
AnyObjective = Objective | DistributionObjective


class Reference(NamedTuple):
    """The base model's side of a call: hidden [N, H], weight [V, H], bias [V] or None. It gets no gradient."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None


def linear_objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    objective: AnyObjective,
    bias: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    reference: Reference | None = None,
    chunk_rows: int | None = None,
) -> HeadOutput:
    """Summed objective of the labels under the softmax of z = scale (hidden @ weight.T + bias).

    hidden [N, H] and weight [V, H] of one floating dtype, or of any under autocast; labels [N] in 0..V-1 or -100
    (skipped, never projected); bias [V] or None; softcap c: z becomes c tanh(z/c); reference: for objectives that
    need the base model.

    Returns (loss_sum [] fp32, supervised [] int64, kept [] int64, logp [N] fp32, never above 0, and 0 where skipped).
    loss_sum is differentiable in hidden, weight and bias, once; the caller divides it by a global count, which may be
    known only after this call. Softmax, thresholds and sums are fp32 whatever the inputs' dtype, float64 for float64.
    A row with a NaN or an infinity makes the loss NaN, whatever the threshold. Raises ValueError for wrong shapes,
    dtypes or labels.
    """
    dtype = _operand_dtype(hidden, weight)
    _check(hidden, weight, labels, bias)
    if (softcap is not None and not softcap > 0) or (chunk_rows is not None and chunk_rows < 1):
        raise ValueError(f"softcap ({softcap}) and chunk_rows ({chunk_rows}) are positive, or None")
    _check_reference(objective, reference, hidden, weight)
    if not torch.is_grad_enabled():  # a Function is told that its inputs need gradients even then
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    if chunk_rows is None:
        chunk_rows = CHUNK_ROWS.get(hidden.device.type, CHUNK_ROWS["cuda"])[dtype.itemsize]
    rows = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    options = _Options(objective, scale, softcap, reference, chunk_rows, dtype)
    with torch.autocast(hidden.device.type, enabled=False):  # what is rounded to dtype is decided here
        loss_sum, kept, logp = _Head.apply(hidden, weight, bias, labels, rows, options)
    return loss_sum, torch.tensor(rows.numel(), device=hidden.device), kept, logp


@dataclass(frozen=True)
class _Options:
    objective: AnyObjective
    scale: float
    softcap: float | None
    reference: Reference | None
    chunk_rows: int
    dtype: torch.dtype

    def layer(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
        return Projection(weight, bias, self.scale, self.softcap, self.dtype)


class _Head(torch.autograd.Function):
    """hidden [N, H], weight [V, H], bias [V] or None, labels [N], rows [R] (supervised) -> loss_sum, kept, logp [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        rows: torch.Tensor,
        options: _Options,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        layer = options.layer(weight, bias)
        wide = layer.wide
        # Sums over thousands of rows lose digits in bf16, so the weight's gradient is gathered in fp32.
        sums = Gradients(
            torch.zeros_like(weight, dtype=wide) if need_weight else None,
            torch.zeros_like(bias, dtype=wide) if need_bias and bias is not None else None,
        )
        grad_rows = hidden.new_zeros(rows.numel(), hidden.shape[1]) if need_hidden else None
        loss_sum = torch.zeros((), dtype=wide, device=hidden.device)
        kept = torch.zeros((), dtype=torch.int64, device=hidden.device)
        logp = torch.zeros(labels.shape, dtype=wide, device=hidden.device)
        differentiable = any(ctx.needs_input_grad)
        stored = differentiable and isinstance(options.objective, Objective)
        size = min(options.chunk_rows, rows.numel()) * weight.shape[0] if stored else 0
        store = hidden.new_empty(size, dtype=options.dtype)  # made once: fresh pages for each chunk would cost time
        for start in range(0, rows.numel(), options.chunk_rows):
            at = rows[start : start + options.chunk_rows]
            x = hidden[at]
            x += 0 * x  # an infinity becomes NaN
            chunk = _chunk(layer, x, labels[at], at, options, store, differentiable)
            logp[at] = chunk.logp
            loss_sum += chunk.loss.sum()
            kept += options.objective.keeps(chunk.logp).sum()
            if chunk.live.numel() == 0:
                continue
            learned = x[chunk.live]
            into = torch.zeros_like(learned, dtype=wide) if grad_rows is not None else None
            for tile, gradient in chunk.gradients:
                sums.add(layer, tile, gradient, learned, into)
            if grad_rows is not None and into is not None:
                grad_rows[start + chunk.live] = into.to(hidden.dtype)
        ctx.save_for_backward(grad_rows, sums.weight, sums.bias, rows)
        ctx.inputs = hidden.shape, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(kept, logp)
        return loss_sum, kept, logp

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # In place, because a second copy of the weight's gradient would be the largest thing in memory. It makes a
        # second backward pass through the same call an error.
        grad_rows, grad_weight, grad_bias, rows = ctx.saved_tensors
        shape, weight_dtype, bias_dtype = ctx.inputs
        grad_hidden = None
        if grad_rows is not None:
            grad_hidden = grad_rows.new_zeros(shape)
            grad_hidden[rows] = grad_rows.mul_(grad_loss)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.mul_(grad_loss).to(weight_dtype),
            None if grad_bias is None else grad_bias.mul_(grad_loss).to(bias_dtype),
            None,
            None,
            None,
        )


class _Chunk(NamedTuple):
    """logp, loss [C]; live [L]: the rows with a gradient; gradients: that of their logits, [L, tile] by [L, tile]."""

    logp: torch.Tensor
    loss: torch.Tensor
    live: torch.Tensor
    gradients: Iterator[tuple[slice, torch.Tensor]]


def _chunk(
    layer: Projection,
    x: torch.Tensor,
    y: torch.Tensor,
    at: torch.Tensor,
    options: _Options,
    store: torch.Tensor,
    differentiable: bool,
) -> _Chunk:
    """The rows x [C, H] with labels y [C], which stand at `at` [C] of the call's.

    store: memory for [C, V], in which the softmax by target waits for its gradient; empty where none is wanted.
    """
    if isinstance(options.objective, Objective):
        return _by_target(layer, x, y, options.objective, store)
    logits, reference = _whole_logits(layer, x), None
    if options.reference is not None and options.objective.needs_reference:
        base = options.layer(options.reference.weight, options.reference.bias)
        reference = _whole_logits(base, options.reference.hidden[at])
    return _by_distribution(layer, Rows(logits, y, reference), options.objective, differentiable)


def _by_target(
    layer: Projection, x: torch.Tensor, y: torch.Tensor, objective: Objective, store: torch.Tensor
) -> _Chunk:
    lses = []  # logsumexp of each tile, the target aside: [C]
    target = torch.zeros_like(y, dtype=layer.wide)[:, None]  # z_y: [C, 1]
    kernels = [store[y.numel() * t.start : y.numel() * t.stop].view(y.numel(), -1) for t in layer.tiles()]
    for tile, kernel in zip(layer.tiles(), kernels, strict=True):
        z = layer.logits(x, tile)
        slope = layer.slope(z)
        inside, column = layer.place(y, tile)
        here = z.gather(1, column)
        target = torch.where(inside, here, target)
        z.scatter_(1, column, here.masked_fill(inside, torch.finfo(z.dtype).min))
        lses.append(_softmax(z, kernel))
        if slope is not None and store.numel():
            kernel.mul_(slope)
    lse = torch.stack(lses)
    others = lse.logsumexp(0)
    u = (target + 0 * target).squeeze(1) - others  # an infinite logit must not pass for p = 1
    logp = logsigmoid(u)
    learned = objective.weight(logp) if store.numel() else torch.zeros_like(logp)
    live = (learned != 0).nonzero().squeeze(1)  # exact zeros only: a tolerance would lose hard tokens

    def gradients() -> Iterator[tuple[slice, torch.Tensor]]:
        whole = live.numel() == y.numel()
        pull = (learned * torch.sigmoid(-u))[live]  # W(p): [L]
        shares = (lse - others).exp()[:, live] * pull
        slope = layer.slope(target[live])
        entry = -pull[:, None] if slope is None else -pull[:, None] * slope
        for tile, kernel, share in zip(layer.tiles(), kernels, shares, strict=True):
            kernel = kernel if whole else kernel[live]
            exact = kernel.dtype == share.dtype
            gradient = kernel.mul_(share[:, None]) if exact else kernel * share[:, None]
            inside, column = layer.place(y[live], tile)
            yield tile, gradient.scatter_(1, column, torch.where(inside, entry, gradient.gather(1, column)))

    return _Chunk(logp, objective.loss(logp), live, gradients())


def _softmax(z: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """logsumexp of each row of z [C, tile], and its softmax into the kernel (if that holds anything)."""
    if kernel.numel() and kernel.dtype == z.dtype:
        softmax = torch.softmax(z, 1, out=kernel)
    else:
        softmax = z.softmax(1)
        kernel.copy_(softmax if kernel.numel() else kernel)
    return z.amax(1) - softmax.amax(1).log()  # both are known of the largest entry: cheaper than another sum


def _by_distribution(layer: Projection, rows: Rows, objective: DistributionObjective, differentiable: bool) -> _Chunk:
    keeps = objective.keeps(rows.logp)
    live = (keeps & differentiable).nonzero().squeeze(1)

    def gradients() -> Iterator[tuple[slice, torch.Tensor]]:
        whole = objective.token_gradient(rows)
        slope = layer.slope(rows.logits)
        if slope is not None:
            whole = whole * slope
        return ((tile, whole[live, tile]) for tile in layer.tiles())

    return _Chunk(rows.logp, objective.token_loss(rows).masked_fill(~keeps, 0.0), live, gradients())


def _whole_logits(layer: Projection, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer.logits(x, tile) for tile in layer.tiles()], dim=1)


def naive_objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    objective: AnyObjective,
    bias: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    reference: Reference | None = None,
) -> HeadOutput:
    """The same by full logits, log_softmax and autograd of the loss: the oracle. Computes in its inputs' dtype."""

    def logits_of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        z = scale * linear(hidden, weight, bias)  # [N, V]
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    supervised = labels != IGNORE_INDEX
    target = labels.where(supervised, torch.zeros_like(labels))
    logits = logits_of(hidden, weight, bias)
    logp = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
    if isinstance(objective, Objective):
        loss = objective.loss(logp)
    else:
        base = None if reference is None else logits_of(*reference).detach()
        loss = objective.token_loss(Rows(logits, target, base)).where(objective.keeps(logp), torch.zeros_like(logp))
    kept = objective.keeps(logp)[supervised].sum()
    return loss[supervised].sum(), supervised.sum(), kept, logp.detach().where(supervised, torch.zeros_like(logp))


def _operand_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """What the operands of the gradients' products are rounded to."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            f"hidden is {hidden.dtype} and weight {weight.dtype}: make them one floating dtype, or autocast"
        )
    return hidden.dtype


def _check(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or labels.dim() != 1:
        raise ValueError(
            f"expected hidden [N, H], weight [V, H], labels [N]; got {list(hidden.shape)}, {list(weight.shape)}, "
            f"{list(labels.shape)}"
        )
    if hidden.shape[1] != weight.shape[1] or hidden.shape[0] != labels.shape[0]:
        raise ValueError(
            f"hidden {list(hidden.shape)} fits neither weight {list(weight.shape)} or labels {list(labels.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit weight {list(weight.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}: give the tokens' whole numbers")
    if labels.numel() and bool((((labels < 0) & (labels != IGNORE_INDEX)) | (labels >= weight.shape[0])).any()):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels go from {low} to {high}; valid are 0 to {weight.shape[0] - 1} and {IGNORE_INDEX}")


def _check_reference(
    objective: AnyObjective, reference: Reference | None, hidden: torch.Tensor, weight: torch.Tensor
) -> None:
    if not objective.needs_reference:
        return
    if reference is None:
        raise ValueError(f"{objective.type} needs the base model's hidden states and output weight: give a reference")
    if reference.hidden.shape[0] != hidden.shape[0] or reference.weight.shape[0] != weight.shape[0]:
        raise ValueError(
            f"reference {list(reference.hidden.shape)}, {list(reference.weight.shape)} is of other rows or another "
            f"vocabulary than hidden {list(hidden.shape)}, weight {list(weight.shape)}"
        )
