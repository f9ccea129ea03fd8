"""Sampling whose random numbers belong to a sequence, not to a batch or to the process."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor


def uniforms(streams: Sequence[tuple[int, int, int]], steps: int) -> torch.Tensor:
    """Numbers in [0, 1), float64 [streams, steps]; a stream (seed, problem, sample) gives the same ones anywhere."""
    drawn = [np.random.Generator(np.random.PCG64(stream)).random(steps) for stream in streams]
    return torch.from_numpy(np.stack(drawn))


class SeededSampling(LogitsProcessor):
    """Draws each row's token from softmax(scores / temperature) and leaves no other for greedy decoding to take.

    The token is where the distribution function passes the row's number of this step, so that batches, ranks and
    torch's random state have no part in it. numbers: [rows, steps] from `uniforms`.
    """

    def __init__(self, numbers: torch.Tensor, temperature: float, prompt_length: int) -> None:
        self.numbers, self.temperature, self.prompt_length = numbers, temperature, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [rows, prompt_length + step], scores [rows, V] -> [rows, V], 0 at the drawn token, else -inf."""
        step = input_ids.shape[1] - self.prompt_length
        scaled = (scores - scores.max(dim=-1, keepdim=True).values) / self.temperature
        passed = torch.softmax(scaled, dim=-1).cumsum(dim=-1, dtype=torch.float64)
        at = self.numbers[:, step : step + 1] * passed[:, -1:]
        drawn = torch.searchsorted(passed, at, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
