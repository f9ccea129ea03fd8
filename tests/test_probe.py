"""Capability against numpy over a float64 log-softmax of single samples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import SweepConfig
from raysft.inprocess import bench_here
from raysft.objectives import IGNORE_INDEX
from raysft.probe import LEVELS, Capability, probe


def capability_of(probabilities: list[float]) -> Capability:
    return Capability(0, 0, 0, 1, 1, np.quantile(probabilities, LEVELS).tolist(), [])


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_numpys_between_percents(probabilities: list[float], q: float) -> None:
    found = capability_of(probabilities)
    percent = round(q, 2)
    assert found.quantile(percent) == pytest.approx(np.quantile(probabilities, percent), abs=1e-9)
    assert min(probabilities) <= found.quantile(q) <= max(probabilities)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50, unique=True), st.floats(0, 1))
def test_level_undoes_quantile(probabilities: list[float], q: float) -> None:
    found = capability_of(probabilities)
    assert found.quantile(found.level(found.quantile(q))) == pytest.approx(found.quantile(q), abs=1e-6)
    assert found.level(-0.1) == 0
    assert found.level(1.1) == 1


@pytest.mark.parametrize("q", [-0.01, 1.01, float("nan")])
def test_quantiles_outside_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match="quantile lies in"):
        capability_of([0.5]).quantile(q)
