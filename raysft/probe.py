"""How capable a backbone already is on a data set: the target's probability over its supervised tokens."""

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.capability import BINS, CONFIDENT, LEVELS, Capability
from raysft.data.batch import Collate
from raysft.data.problems import spread
from raysft.data.tokenized import TokenizedData
from raysft.evaluation.forward import batch_logps
from raysft.ranks import Ranks


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
