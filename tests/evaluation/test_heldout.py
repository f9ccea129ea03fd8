"""Held-out scores against a float64 log-softmax over single samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from raysft.evaluation.forward import batch_logps, evaluating, spread
from raysft.evaluation.heldout import heldout_scores
from raysft.trial import Bench

CPU = torch.device("cpu")


@pytest.mark.parametrize("budget", [1, 60, 4096])
def test_scores_are_the_oracles(bench: Bench, logps: Callable[..., np.ndarray], budget: int) -> None:
    expected = logps(bench.heldout)
    scores = heldout_scores(bench.base, bench.heldout, budget, bench.collate, bench.ranks, CPU)
    assert scores["eval/nll"] == pytest.approx(-expected.mean(), rel=1e-6)
    assert scores["eval/mean_probability"] == pytest.approx(np.exp(expected).mean(), rel=1e-6)
    assert expected.size == bench.heldout.counts["supervised_tokens"]


def test_ranks_deal_whole_batches_with_the_same_numbers(bench: Bench, one_of: Any) -> None:
    def batches(ranks: Any) -> list[bytes]:
        found = batch_logps(bench.base, bench.heldout, range(len(bench.heldout)), 60, bench.collate, ranks, CPU)
        return [batch.tobytes() for batch in found]

    alone = batches(bench.ranks)
    assert len(alone) == 4
    first, second = batches(one_of(0, 2)), batches(one_of(1, 2))
    assert [first[0], second[0], first[1], second[1]] == alone


def test_modes_are_restored(bench: Bench) -> None:
    bench.base.train()
    part = next(bench.base.children())
    part.eval()
    with evaluating(bench.base):
        assert not bench.base.training
    assert bench.base.training
    assert not part.training


@pytest.mark.parametrize(("total", "count", "indices"), [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 1, [0])])
def test_spread(total: int, count: int, indices: list[int]) -> None:
    assert spread(total, count) == indices
