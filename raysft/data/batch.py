"""Samples of different lengths as one batch: one behind the other without padding, or padded to the longest."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from raysft.objectives import IGNORE_INDEX

Sample = tuple[np.ndarray, np.ndarray]  # tokens and labels, int64 [T] each


@dataclass(frozen=True)
class Batch:
    """input_ids, labels: LongTensor [B, T], aligned (the model shifts them); IGNORE_INDEX is no label.

    lengths: tokens of each sample. packed: the samples lie one behind the other, so B is 1 and T their sum, and no
    sample's first token is a label; otherwise each has a row, padded on the right.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: tuple[int, ...]
    packed: bool

    def to(self, device: torch.device | str) -> "Batch":
        return replace(self, input_ids=self.input_ids.to(device), labels=self.labels.to(device))

    def sample_ids(self) -> torch.Tensor:
        """Which sample each position belongs to, padding to that of its row: LongTensor [B, T] on the CPU."""
        numbers = torch.arange(len(self.lengths))
        if self.packed:
            return numbers.repeat_interleave(torch.tensor(self.lengths))[None]
        return numbers[:, None].expand(self.input_ids.shape)


@dataclass(frozen=True)
class Collate:
    """Makes batches for a model. packed: it keeps attention within samples (raysft.attention); else rows are padded."""

    pad_id: int
    packed: bool

    def __call__(self, samples: list[Sample]) -> Batch:
        lengths = tuple(len(tokens) for tokens, _ in samples)
        if self.packed:
            input_ids, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*samples, strict=True))
            labels[np.cumsum([0, *lengths[:-1]])] = IGNORE_INDEX  # what precedes it is another sample
            return Batch(input_ids[None], labels[None], lengths, packed=True)
        shape = len(samples), max(lengths)
        input_ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORE_INDEX)
        for row, (tokens, targets) in enumerate(samples):
            input_ids[row, : len(tokens)] = torch.from_numpy(tokens)
            labels[row, : len(tokens)] = torch.from_numpy(targets)
        return Batch(input_ids, labels, lengths, packed=False)
