"""Log p of a data set's supervised tokens, shared by held-out scores and the probe."""

from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedModel

from raysft.backbone import evaluating, token_logp
from raysft.data.batch import collate
from raysft.data.tokenized import TokenizedData
from raysft.ranks import Ranks


def spread(total: int, count: int) -> list[int]:
    """`count` indices below `total` at an even stride from 0 on; all of them where there are no more."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def batch_logps(
    model: PreTrainedModel,
    data: TokenizedData,
    indices: Iterable[int],
    batch_size: int,
    pad_id: int,
    ranks: Ranks,
    device: torch.device,
) -> list[np.ndarray]:
    """log p of the supervised tokens of this rank's batches, float64 [tokens] each.

    Batches are cut from the samples in order of length, the longest first, and dealt whole to the ranks: a sample is
    padded to the same length, and so gets bitwise the same numbers, however many ranks there are.
    """
    by_length = sorted(indices, key=lambda i: (-data.lengths[i], i))
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    found = []
    with evaluating(model):
        for batch in ranks.share(batches):
            padded = collate([data.sample(i) for i in batch], pad_id).to(device)
            logp = token_logp(model, padded.input_ids, padded.labels, padded.attention_mask)
            found.append(logp.double().cpu().numpy())
    return found
