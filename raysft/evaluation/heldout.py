"""Held-out scores that are the same function for every objective."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from raysft.backbone import hidden_states, output_transform, shifted
from raysft.data.batch import Batch, Collate
from raysft.data.tokenized import TokenizedData
from raysft.evaluation.forward import batch_logps
from raysft.objectives import IGNORE_INDEX
from raysft.objectives.projection import Projection
from raysft.ranks import Ranks

BINS = 15  # of the calibration error, equally wide
CHUNK_ROWS = {"cpu": 256, "cuda": 1024}


def heldout_scores(
    model: PreTrainedModel,
    data: TokenizedData,
    budget: int,
    collate: Collate,
    ranks: Ranks,
    device: torch.device,
    samples: Sequence[int] | None = None,
) -> dict[str, float]:
    """Means over all supervised tokens of the data's `samples` (default: all).

    eval/nll: -log p in nats; eval/mean_probability: p (Eq. 5 of arXiv 2510.00526); eval/token_accuracy: whether no
    token is likelier than the target; eval/entropy: that of the prediction, in nats; eval/calibration_error: how far
    the likeliest token's probability is from how often it is the target, over 15 bins of that probability.

    Collective, and the same on every rank. Sums are exact over batches of float64 sums: the number of ranks changes
    no bit, the budget (tokens of a batch) no more than the round-off of the logits.
    """
    samples = range(len(data)) if samples is None else samples
    mine = batch_logps(model, data, samples, budget, collate, ranks, device, of=token_scores)
    sums = [_sums(scores) for scores in mine]
    batches = [batch for part in ranks.gather(sums) for batch in part]
    logp, probability, right, entropy, *binned = [math.fsum(column) for column in zip(*batches, strict=True)]
    count, confidence, hits = np.array(binned).reshape(3, BINS)
    tokens = float(count.sum())
    return {
        "eval/nll": -logp / tokens,
        "eval/mean_probability": probability / tokens,
        "eval/token_accuracy": right / tokens,
        "eval/entropy": entropy / tokens,
        "eval/calibration_error": math.fsum(np.abs(confidence - hits)) / tokens,
    }


def _sums(scores: np.ndarray) -> list[float]:
    """Of token_scores' [4, tokens] the sums, then of each bin the tokens, their confidence and the right ones."""
    logp, top, right, entropy = scores
    confidence = np.exp(top)
    # What is no number falls into the first bin; `evaluate` says so by the NLL.
    bins = (np.nan_to_num(confidence) * BINS).astype(np.int64).clip(0, BINS - 1)
    by_bin = [np.bincount(bins, weights, minlength=BINS) for weights in (None, confidence, right)]
    return [*map(float, (logp.sum(), np.exp(logp).sum(), right.sum(), entropy.sum())), *np.concatenate(by_bin).tolist()]


@torch.no_grad()
def token_scores(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Of every supervised token, in order: log p, the likeliest token's log p, whether that is no more than the
    target's, and the prediction's entropy. fp32 [4, supervised].
    """
    rows, targets = shifted(hidden_states(model, batch), batch.labels)
    supervised = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    output, transform = model.get_output_embeddings(), output_transform(model)
    layer = Projection(output.weight, output.bias, transform["scale"], transform["softcap"], output.weight.dtype)
    chunks = supervised.split(CHUNK_ROWS.get(rows.device.type, CHUNK_ROWS["cuda"]))
    return torch.cat([_chunk_scores(layer, rows[at], targets[at]) for at in chunks], dim=1)


def _chunk_scores(layer: Projection, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x [C, H], y [C] -> [4, C], without ever holding the [C, V] logits.

    The softmax is taken over the *other* tokens, as the loss head does: then neither p -> 0 nor p -> 1 loses a digit,
    nor does the entropy of a prediction that is nearly certain of the target.
    """
    target = torch.zeros_like(y, dtype=layer.wide)[:, None]
    lses, means, tops = [], [], []  # of each tile, the target aside: logsumexp, mean logit under the softmax, largest
    for tile in layer.tiles():
        z = layer.logits(x, tile)
        inside, column = layer.place(y, tile)
        here = z.gather(1, column)
        target = torch.where(inside, here, target)
        z.scatter_(1, column, here.masked_fill(inside, torch.finfo(z.dtype).min))
        softmax = z.softmax(1)
        tops.append(z.amax(1))
        lses.append(tops[-1] - softmax.amax(1).log())
        means.append(torch.linalg.vecdot(softmax, z))
    lse, top = torch.stack(lses), torch.stack(tops).amax(0)
    others = lse.logsumexp(0)
    mean = ((lse - others).exp() * torch.stack(means)).sum(0)
    target = (target + 0 * target).squeeze(1)  # an infinite logit must not pass for p = 1
    logp, rest = logsigmoid(target - others), logsigmoid(others - target)
    entropy = -logp.exp() * logp - rest.exp() * (rest + mean - others)
    return torch.stack([logp, torch.maximum(logp, rest + top - others), (target >= top).to(logp.dtype), entropy])
