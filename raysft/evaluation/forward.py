"""A pass over a data set's supervised tokens, shared by held-out scores and the probe."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.backbone import evaluating, token_logp
from raysft.data.batch import Batch, Collate
from raysft.data.packing import deal
from raysft.data.tokenized import TokenizedData
from raysft.ranks import Ranks


def batch_logps(
    model: PreTrainedModel,
    data: TokenizedData,
    indices: Iterable[int],
    budget: int,
    collate: Collate,
    ranks: Ranks,
    device: torch.device,
    of: Callable[[PreTrainedModel, Batch], torch.Tensor] = token_logp,
) -> list[np.ndarray]:
    """log p of the supervised tokens of this rank's batches, float64 [tokens] each; or what `of` says of them.

    budget: tokens of a batch. Batches are dealt whole to the ranks: a sample has the same neighbours, and so gets
    bitwise the same numbers, however many ranks there are.
    """
    indices = np.asarray(list(indices))
    ((batches),) = deal(data.lengths[indices], budget, padded=not collate.packed)
    found = []
    with evaluating(model):
        for batch in ranks.share(batches):
            samples = collate([data.sample(int(i)) for i in indices[batch]])
            found.append(of(model, samples.to(device)).double().cpu().numpy())
    return found
