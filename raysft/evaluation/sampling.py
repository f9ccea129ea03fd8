"""Sampling whose random numbers belong to a sequence, not to a batch or to the process."""

from collections.abc import Sequence

import numpy as np
import torch

BLOCK = 256  # tokens of the vocabulary that are added up before any of them is looked at


def uniforms(streams: Sequence[tuple[int, int, int]], steps: int) -> torch.Tensor:
    """Numbers in [0, 1), float64 [streams, steps]; a stream (seed, problem, sample) gives the same ones anywhere."""
    drawn = [np.random.Generator(np.random.PCG64(stream)).random(steps) for stream in streams]
    return torch.from_numpy(np.stack(drawn))


def draw(scores: torch.Tensor, numbers: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row from softmax(scores / temperature), and that distribution's entropy in nats.

    scores [rows, V], fp32; numbers [rows], float64 in [0, 1) -> LongTensor [rows], fp32 [rows]. The token is where the
    distribution function passes the row's number, so that batches, ranks and torch's random state have no part in it.
    Temperature 0 takes the largest score, and the entropy is that of softmax(scores). A row of NaN, for which there is
    no right token, gets one of the vocabulary's, and NaN for its entropy.
    """
    rows, vocabulary = scores.shape
    blocks = -(-vocabulary // BLOCK)
    gaps = scores - scores.amax(dim=-1, keepdim=True)
    if temperature not in (0, 1):
        gaps /= temperature
    gaps.clamp_(min=torch.finfo(gaps.dtype).min)  # a score of -inf: below, 0 x -inf would be no number
    weights = gaps.new_empty(rows, blocks * BLOCK)
    torch.exp(gaps, out=weights[:, :vocabulary])
    weights[:, vocabulary:] = 0
    by_block = weights.unflatten(1, (blocks, BLOCK)).sum(dim=-1).double()
    total = by_block.sum(dim=-1)
    entropy = total.log() - torch.linalg.vecdot(weights[:, :vocabulary], gaps).double() / total
    if temperature == 0:
        return scores.argmax(dim=-1), entropy.float()
    passed = by_block.cumsum(dim=-1)
    block, rest = _passing(passed, numbers[:, None] * passed[:, -1:])
    inside = weights.unflatten(1, (blocks, BLOCK)).gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    within, _ = _passing(inside.double().cumsum(dim=-1), rest)
    return (block * BLOCK + within).squeeze(1).clamp(max=vocabulary - 1), entropy.float()


def _passing(passed: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where sums [rows, N], that never fall, pass `at` [rows, 1], and how far that is behind the entry before it.

    Never an entry that adds nothing: round-off must not put `at` behind them all.
    """
    at = torch.minimum(at, torch.nextafter(passed[:, -1:], torch.zeros_like(at)))
    found = torch.searchsorted(passed, at, right=True).clamp(max=passed.shape[1] - 1)  # beyond it with NaN
    return found, at - torch.where(found > 0, passed.gather(1, (found - 1).clamp(min=0)), 0.0)
