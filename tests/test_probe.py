"""Capability against numpy over a float64 log-softmax of single samples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raysft.capability import LEVELS, Capability
from raysft.config import SweepConfig
from raysft.inprocess import bench_here
from raysft.objectives import IGNORE_INDEX
from raysft.probe import probe


@pytest.mark.parametrize("budget", [1, 60])
def test_capability_is_the_oracles(make_config: Callable[..., SweepConfig], budget: int) -> None:
    bench = bench_here(make_config().for_backbone("tiny"))
    found = probe(bench.base, bench.train, 10, budget, bench.collate, bench.ranks, torch.device("cpu"))
    p: list[float] = []
    model = bench.base.double()
    for i in [i * len(bench.train) // 10 for i in range(10)]:
        tokens, labels = (torch.as_tensor(array) for array in bench.train.sample(i))
        with torch.no_grad():
            all_p = model(input_ids=tokens[None]).logits[0].softmax(-1)
        p += [float(all_p[at - 1, label]) for at, label in enumerate(labels.tolist()) if label != IGNORE_INDEX]
    assert found.samples == 10
    assert found.tokens == len(p)
    assert found.mean_probability == pytest.approx(np.mean(p), rel=1e-5)
    assert found.mean_logp == pytest.approx(np.mean(np.log(p)), rel=1e-5)
    assert found.share_above == np.mean(np.array(p) >= 0.55)
    assert found.quantiles == pytest.approx(np.quantile(p, LEVELS), rel=1e-4)
    assert found.histogram == np.histogram(p, bins=20, range=(0, 1))[0].tolist()
    assert Capability.from_json(found.to_json()) == found
