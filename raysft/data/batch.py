"""Samples of different lengths as one padded batch."""

from dataclasses import dataclass

import numpy as np
import torch

from raysft.objectives import IGNORE_INDEX


@dataclass
class Batch:
    """All LongTensor [B, T]. labels are aligned with input_ids (the model shifts them); IGNORE_INDEX is no label."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.input_ids.to(device), self.labels.to(device), self.attention_mask.to(device))


def collate(samples: list[tuple[np.ndarray, np.ndarray]], pad_id: int) -> Batch:
    """(tokens [T], labels [T]) of each sample, padded on the right to the longest."""
    shape = len(samples), max(len(tokens) for tokens, _ in samples)
    batch = Batch(
        input_ids=torch.full(shape, pad_id),
        labels=torch.full(shape, IGNORE_INDEX),
        attention_mask=torch.zeros(shape, dtype=torch.long),
    )
    for row, (tokens, labels) in enumerate(samples):
        batch.input_ids[row, : len(tokens)] = torch.from_numpy(tokens)
        batch.labels[row, : len(tokens)] = torch.from_numpy(labels)
        batch.attention_mask[row, : len(tokens)] = 1
    return batch
