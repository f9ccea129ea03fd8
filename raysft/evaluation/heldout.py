"""Held-out scores that are the same function for every objective."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.data.batch import Collate
from raysft.data.tokenized import TokenizedData
from raysft.evaluation.forward import batch_logps
from raysft.ranks import Ranks


def heldout_scores(
    model: PreTrainedModel, data: TokenizedData, budget: int, collate: Collate, ranks: Ranks, device: torch.device
) -> dict[str, float]:
    """Means over all supervised tokens of `data`: -log p in nats (eval/nll) and p (eval/mean_probability).

    Collective, and the same on every rank. Sums are exact over batches of float64 sums: the number of ranks changes
    no bit, the budget (tokens of a batch) no more than the round-off of log p.
    """
    mine = batch_logps(model, data, range(len(data)), budget, collate, ranks, device)
    sums = [(float(logp.sum()), float(np.exp(logp).sum()), logp.size) for logp in mine]
    logp, probability, tokens = zip(*[batch for part in ranks.gather(sums) for batch in part], strict=True)
    return {
        "eval/nll": -math.fsum(logp) / sum(tokens),
        "eval/mean_probability": math.fsum(probability) / sum(tokens),
    }
