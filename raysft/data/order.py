"""The order in which samples are seen: a pure function of the seed and the step."""

from functools import lru_cache

import numpy as np


class SampleOrder:
    """An endless stream of epochs, each a shuffle of its own of n samples, cut into global batches.

    A batch may span the border of epochs. Nothing depends on the number of workers or on earlier calls, so that a run
    resumes at any step and in a group of any size.
    """

    def __init__(self, n: int, global_batch_size: int, seed: int) -> None:
        if n < 1 or global_batch_size < 1:
            raise ValueError(f"{n} samples cannot be ordered into batches of {global_batch_size}")
        self.n, self.global_batch_size, self.seed = n, global_batch_size, seed

    def at(self, step: int) -> np.ndarray:
        """Sample indices int64 [global_batch_size] of optimizer step `step`, counted from 0."""
        start = step * self.global_batch_size
        end = start + self.global_batch_size
        parts = []
        while start < end:
            epoch, offset = divmod(start, self.n)
            parts.append(_permutation(self.n, self.seed, epoch)[offset : offset + end - start])
            start += len(parts[-1])
        return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch may span two epochs
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
    order.flags.writeable = False
    return order
