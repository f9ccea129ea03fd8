"""The loss head: hidden states x output weight -> objective, without ever holding the [N, V] logits.

For every objective the gradient with respect to the logits is s(p) (softmax - onehot) with a scalar s(p) per token
(arXiv 2510.00526, Lemma 3.1). So loss and both gradients come out of one pass over chunks of rows: three matrix
products per chunk, nothing kept between chunks but the gradients themselves.
"""

from typing import Any

import torch

from raysft.objectives.base import IGNORE_INDEX, Objective

CHUNK_ROWS = 256


def linear_objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    bias: torch.Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed objective of the labels under softmax(hidden @ weight.T + bias).

    hidden [N, H] and weight [V, H] of one floating dtype, labels [N] in 0..V-1 or -100 (skipped, never projected),
    bias [V] or None. Returns (loss_sum [] fp32, supervised [] int64, kept [] int64, logp [N] fp32, 0 where skipped).
    loss_sum is differentiable in hidden, weight and bias; the caller divides it once, by a global count.
    Softmax, thresholds and sums are fp32 whatever the inputs' dtype. Raises ValueError for wrong shapes or labels.
    """
    _check(hidden, weight, labels, bias)
    if not torch.is_grad_enabled():  # a Function is told that the weight needs a gradient even then
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    rows = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    loss_sum, kept, logp_rows = _Head.apply(hidden[rows], weight, bias, labels[rows], objective, chunk_rows)
    logp = torch.zeros(labels.shape[0], dtype=torch.float32, device=hidden.device)
    logp[rows] = logp_rows
    return loss_sum, torch.tensor(rows.numel(), device=hidden.device), kept, logp


class _Head(torch.autograd.Function):
    """hidden [R, H], weight [V, H], bias [V] or None, labels [R] -> loss_sum, kept, logp [R]; every row supervised."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        objective: Objective,
        chunk_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        # Sums over thousands of rows lose digits in bf16, so the weight's gradient is gathered in fp32.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kept = torch.zeros((), dtype=torch.int64, device=hidden.device)
        logps = []
        for start in range(0, labels.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = torch.nn.functional.linear(hidden[chunk], weight, bias).float()  # [C, V]
            logp, probability = _log_softmax_at(logits, labels[chunk])  # [C], [C, V] in the memory of logits
            logps.append(logp)
            loss_sum += objective.loss(logp).sum()
            kept += objective.keeps(logp).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            learned = objective.weight(logp)  # s(p): [C]
            live = (learned != 0).nonzero().squeeze(1)  # exact zeros only: a tolerance would lose hard tokens
            if live.numel() == 0:
                continue
            grad_logits = _grad_logits(probability, labels[chunk], logp, learned, live)  # [L, V]
            cast = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[start + live] = cast @ weight
            if grad_weight is not None:
                grad_weight += cast.T @ hidden[chunk][live]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, bias.dtype if bias is not None else None
        logp_all = torch.cat(logps) if logps else torch.zeros(0, dtype=torch.float32, device=hidden.device)
        ctx.mark_non_differentiable(kept, logp_all)
        return loss_sum, kept, logp_all

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_loss).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad_loss).to(bias_dtype),
            None,
            None,
            None,
        )


def _log_softmax_at(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the labels [C] and softmax [C, V], in place of the logits [C, V].

    The target is left out of the sum of the others, S_o = sum_{j != t} exp(z_j - max), so that log p near p = 1 comes
    from log1p(S_o) and keeps the digits that log(sum) would round away.
    """
    at = labels.unsqueeze(1)
    logits -= logits.max(dim=1, keepdim=True).values
    target = logits.gather(1, at).squeeze(1)  # d = z_t - max
    exps = logits.exp_()
    exps.scatter_(1, at, 0.0)
    others = exps.sum(dim=1)  # S_o
    total = others + target.exp()
    logp = torch.where(target == 0, -torch.log1p(others), target - total.log())
    exps.scatter_(1, at, target.exp().unsqueeze(1))
    return logp, exps.div_(total.unsqueeze(1))


def _grad_logits(
    probability: torch.Tensor, labels: torch.Tensor, logp: torch.Tensor, learned: torch.Tensor, live: torch.Tensor
) -> torch.Tensor:
    """s(p) (softmax - onehot) of the live rows: [L, V]. The target's entry is -(1 - p) = expm1(log p), not p - 1."""
    full = live.numel() == labels.numel()
    grad = probability if full else probability[live]
    grad.scatter_(1, labels[live].unsqueeze(1), torch.expm1(logp[live]).unsqueeze(1))
    return grad.mul_(learned[live].unsqueeze(1))


def naive_objective(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same by full logits, log_softmax and autograd: the oracle. Computes in the dtype of its inputs."""
    logits = torch.nn.functional.linear(hidden, weight, bias)  # [N, V]
    supervised = labels != IGNORE_INDEX
    target = labels.where(supervised, torch.zeros_like(labels)).unsqueeze(1)
    logp = torch.log_softmax(logits, dim=1).gather(1, target).squeeze(1)
    loss = objective.loss(logp)[supervised].sum()
    kept = objective.keeps(logp)[supervised].sum()
    return loss, supervised.sum(), kept, logp.detach().where(supervised, torch.zeros_like(logp))


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
    if labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if (
            (low < 0 and low != IGNORE_INDEX)
            or high >= weight.shape[0]
            or bool(((labels < 0) & (labels != -100)).any())
        ):
            raise ValueError(f"labels go from {low} to {high}; valid are 0 to {weight.shape[0] - 1} and {IGNORE_INDEX}")
