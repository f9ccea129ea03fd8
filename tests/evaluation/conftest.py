"""One bench over the tiny backbone, for tests that only read from it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raysft.config import SweepConfig
from raysft.data.tokenized import TokenizedData
from raysft.inprocess import bench_here
from raysft.objectives import IGNORE_INDEX
from raysft.ranks import Ranks
from raysft.trial import Bench


@pytest.fixture
def bench(make_config: Callable[..., SweepConfig]) -> Bench:
    return bench_here(make_config().for_backbone("tiny"))


@pytest.fixture
def logps(bench: Bench) -> Callable[[TokenizedData], np.ndarray]:
    """The oracle: log p of all supervised tokens, float64, one sample at a time, by a full log-softmax."""

    def naive(data: TokenizedData) -> np.ndarray:
        model = bench.base.double()
        found = []
        for i in range(len(data)):
            tokens, labels = (torch.as_tensor(array) for array in data.sample(i))
            with torch.no_grad():
                logits = model(input_ids=tokens[None]).logits[0, :-1]
            targets = labels[1:]
            supervised = targets != IGNORE_INDEX
            logp = logits.log_softmax(-1)[supervised].gather(1, targets[supervised, None])
            found.append(logp[:, 0].numpy())
        bench.base.float()
        return np.concatenate(found)

    return naive


class OneOf(Ranks):
    """A rank of a group, as far as dealing out work goes; nothing is gathered from the others."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.parts = rank, world

    def share(self, items: list) -> list:  # type: ignore[type-arg]
        return items[self.rank :: self.parts]


@pytest.fixture
def one_of() -> type[OneOf]:
    return OneOf
