"""Held-out scores against a float64 log-softmax over single samples, and over full logits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.evaluation.forward import batch_logps, evaluating
from raysft.evaluation.heldout import _chunk_scores, _sums, heldout_scores, token_scores
from raysft.objectives import IGNORE_INDEX, projection
from raysft.objectives.projection import Projection
from raysft.trial import Bench

CPU = torch.device("cpu")


@pytest.mark.parametrize("budget", [1, 60, 4096])
def test_scores_are_the_oracles(bench: Bench, logps: Callable[..., np.ndarray], budget: int) -> None:
    expected = logps(bench.heldout)
    scores = heldout_scores(bench.base, bench.heldout, budget, bench.collate, bench.ranks, CPU)
    assert scores["eval/nll"] == pytest.approx(-expected.mean(), rel=1e-6)
    assert scores["eval/mean_probability"] == pytest.approx(np.exp(expected).mean(), rel=1e-6)
    assert expected.size == bench.heldout.counts["supervised_tokens"]


def naive(bench: Bench) -> np.ndarray:
    """[4, tokens] in float64, one sample at a time, by full logits."""
    model, found = bench.base.double(), []
    for i in range(len(bench.heldout)):
        tokens, labels = (torch.as_tensor(array) for array in bench.heldout.sample(i))
        with torch.no_grad():
            logp = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        supervised = labels[1:] != IGNORE_INDEX
        logp, targets = logp[supervised], labels[1:][supervised]
        entropy = -(logp.exp() * logp).sum(-1)
        own = logp.gather(1, targets[:, None])[:, 0]
        found.append(torch.stack([own, logp.amax(-1), (logp.argmax(-1) == targets).double(), entropy]))
    bench.base.float()
    return torch.cat(found, dim=1).numpy()


@pytest.mark.parametrize("budget", [60, 4096])
def test_accuracy_entropy_and_calibration_are_the_oracles(bench: Bench, budget: int) -> None:
    """Of loud logits, that have confident predictions, right ones among them."""
    with torch.no_grad():
        bench.base.get_output_embeddings().weight *= 8
    logp, top, right, entropy = naive(bench)
    scores = heldout_scores(bench.base, bench.heldout, budget, bench.collate, bench.ranks, CPU)
    assert 0 < right.mean() < 1
    assert scores["eval/nll"] == pytest.approx(-logp.mean(), rel=1e-5)
    assert scores["eval/token_accuracy"] == pytest.approx(right.mean(), rel=1e-12)
    assert scores["eval/entropy"] == pytest.approx(entropy.mean(), rel=1e-4)
    confidence = np.exp(top)
    bins = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1])
    assert len(set(bins)) >= 4
    gaps = [(bins == b).sum() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins)]
    assert scores["eval/calibration_error"] == pytest.approx(sum(gaps) / len(bins), rel=1e-4)


def test_a_batchs_scores_are_those_of_its_supervised_tokens_in_order(bench: Bench) -> None:
    samples = [bench.heldout.sample(i) for i in range(len(bench.heldout))]
    found = token_scores(bench.base, bench.collate(samples))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().numpy(), naive(bench), rtol=1e-4, atol=1e-5)


@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 3, 64, 65, 129]),
    st.floats(0, 100),
    st.sampled_from([None, 5.0]),
    st.booleans(),
)
def test_scores_of_any_logits_are_those_of_full_ones(
    seed: int, vocabulary: int, loudness: float, softcap: float | None, bias: bool
) -> None:
    """From all alike to all but certain, in tiles that the vocabulary fills or does not."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight, shift = normal(7, 5), loudness * normal(vocabulary, 5), normal(vocabulary) if bias else None
    y = torch.randint(0, vocabulary, (7,), generator=generator)
    z = x.double() @ weight.double().t() + (0 if shift is None else shift.double())
    y[:3] = z[:3].argmax(-1)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logp = z.log_softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(projection.TILE, "cpu", 64)
        found = _chunk_scores(Projection(weight, shift, 1.0, softcap, torch.float32), x, y).double()
    own = logp.gather(1, y[:, None])[:, 0]
    size = 1 + z.abs().amax(-1)  # the digits that fp32 logits have
    assert ((found[0] - own).abs() <= 1e-5 * size).all()
    assert ((found[1] - logp.amax(-1)).abs() <= 1e-5 * size).all()
    assert (found[:2] <= 0).all()
    entropy = -(logp.exp() * logp).sum(-1)
    assert ((found[3] - entropy).abs() <= 2e-5 * size).all()
    gap = z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(-1)
    clear = gap.abs() > 1e-5 * size
    assert torch.equal(found[2][clear] == 1, gap[clear] > 0)


def test_a_certain_prediction_keeps_its_digits() -> None:
    """Where p is 1 to fp32, entropy and log p are not 0."""
    weight = torch.tensor([[20.0], [0.0], [-1.0]])
    logp, top, right, entropy = _chunk_scores(
        Projection(weight, None, 1.0, None, torch.float32), torch.ones(1, 1), torch.tensor([0])
    )[:, 0].double()
    exact = weight.double().flatten().log_softmax(-1)
    assert float(logp) == pytest.approx(float(exact[0]), rel=1e-5)
    assert float(entropy) == pytest.approx(float(-(exact.exp() * exact).sum()), rel=1e-5)
    assert top == logp
    assert right == 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_make_the_nll_none(broken: float) -> None:
    weight = torch.tensor([[broken], [0.0], [-1.0]])
    scores = _chunk_scores(Projection(weight, None, 1.0, None, torch.float32), torch.ones(1, 1), torch.tensor([0]))
    assert scores[0].isnan().all()
    assert np.isnan(_sums(scores.double().numpy())[0])


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
