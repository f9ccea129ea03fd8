"""The chunked head against full logits and autograd in float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raysft.objectives import IGNORE_INDEX, Objective, build, linear_objective, naive_objective

exponents = st.sampled_from([-0.5, 0.0, 1e-6, 0.5, 1.0, 2.0, 10.0])
thresholds = st.sampled_from([None, 0.0, 0.05, 0.2, 1.0])
keeps = st.sampled_from(["above", "below"])
objectives = st.builds(lambda a, t, k: build("power", exponent=a, threshold=t, keep=k), exponents, thresholds, keeps)


def case(n: int, h: int, v: int, seed: int, scale: float = 1.0, ignored: float = 0.3) -> dict[str, torch.Tensor]:
    """Random hidden [n, h], weight [v, h], bias [v] in float64 and labels [n], about `ignored` of them ignored."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, v, (n,), generator=rng)
    labels[torch.rand(n, generator=rng) < ignored] = IGNORE_INDEX
    return {
        "hidden": scale * torch.randn(n, h, generator=rng, dtype=torch.float64),
        "weight": torch.randn(v, h, generator=rng, dtype=torch.float64),
        "labels": labels,
        "bias": torch.randn(v, generator=rng, dtype=torch.float64),
    }


cases = st.builds(
    case,
    n=st.integers(0, 12),
    h=st.integers(1, 6),
    v=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)


def run(head: Any, tensors: dict[str, torch.Tensor], objective: Objective, **options: Any) -> dict[str, torch.Tensor]:
    """Outputs of a head, and the gradients of its loss times 3."""
    leaves = {k: t.clone().requires_grad_() for k, t in tensors.items() if t.is_floating_point()}
    loss, supervised, kept, logp = head(**{**tensors, **leaves}, objective=objective, **options)
    (3 * loss).backward()
    gradients = {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach(), "supervised": supervised, "kept": kept, "logp": logp.detach(), **gradients}


def away_from_threshold(objective: Any, logp: torch.Tensor) -> bool:
    """Whether no token is so near the threshold that fp32 and float64 may disagree about it."""
    if not objective.threshold:
        return True
    return bool(((logp - math.log(objective.threshold)).abs() > 1e-5).all())


@given(tensors=cases, objective=objectives, chunk_rows=st.integers(1, 13), biased=st.booleans())
@settings(max_examples=300)
def test_equals_full_logits_and_autograd(
    tensors: dict[str, torch.Tensor], objective: Objective, chunk_rows: int, biased: bool
) -> None:
    if not biased:
        tensors = {k: t for k, t in tensors.items() if k != "bias"}
    expected = run(naive_objective, tensors, objective)
    assume(away_from_threshold(objective, expected["logp"][tensors["labels"] != IGNORE_INDEX]))
    found = run(linear_objective, tensors, objective, chunk_rows=chunk_rows)
    assert found.keys() == expected.keys()
    assert found["supervised"] == expected["supervised"]
    assert found["kept"] == expected["kept"]
    assert found["loss"].dtype == found["logp"].dtype == torch.float32
    for name, value in expected.items():  # fp32 inside, so relative to the largest entry
        size = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        torch.testing.assert_close(found[name].double(), value.double(), rtol=2e-5, atol=2e-6 * size)


# Rows of logits that stand as they are in the weight (hidden is the identity), so that only the head can round them.
EXTREME = [
    [0.0, -100.0, -100.0],
    [-100.0, 0.0, -101.0],
    [0.0, -1e4, -1e4],
    [-1e4, 0.0, -1e4],
    [1e4, 1e4, -1e4],
    [17.0, 0.0, -17.0],
    [0.0, 17.0, -17.0],
    [40.0, 0.0, 0.0],
    [3.0, 3.0, 3.0],
]


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1e-6, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_keep_their_digits(exponent: float, threshold: float | None, dtype: torch.dtype) -> None:
    """p -> 0 and p -> 1: every logit's gradient within 1e-4 of itself, where p - 1 would have lost it.

    Only a softmax below fp32's smallest number may be lost.
    """
    logits = torch.tensor(EXTREME, dtype=torch.float64)
    labels = torch.zeros(len(EXTREME), dtype=torch.long)
    objective = build("power", exponent=exponent, threshold=threshold)
    weight = logits.T.contiguous().to(dtype).requires_grad_()
    loss, _, kept, logp = linear_objective(torch.eye(len(EXTREME), dtype=dtype), weight, labels, objective)
    loss.backward()

    others = torch.logsumexp(logits[:, 1:] - logits[:, :1], dim=1)  # log((1 - p)/p)
    exact = -torch.logaddexp(torch.zeros_like(others), others)
    one_minus_p = torch.sigmoid(others)
    softmax = torch.softmax(logits, dim=1)
    learned = objective.weight(exact)[:, None]
    expected = learned * torch.cat([-one_minus_p[:, None], softmax[:, 1:]], dim=1)
    torch.testing.assert_close(logp.double(), exact, rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(loss.double(), objective.loss(exact).sum(), rtol=1e-5, atol=0)
    assert int(kept) == int(objective.keeps(exact).sum())
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.T.double(), expected, rtol=1e-4, atol=1e-44 * float(learned.max() + 1))
    assert (logp <= 0).all()


@given(seed=st.integers(0, 2**31), objective=objectives)
@settings(max_examples=40)
def test_bf16_inputs_stay_within_two_percent(seed: int, objective: Any) -> None:
    """Against float64 on the same bf16 values, 2 % of the largest entry for each unit of the exponent.

    Logits are rounded to 8 bits, which moves log p by 2^-8 of them, and p^a by a times as much.
    """
    tensors = case(24, 16, 32, seed, scale=0.3)
    rounded = {k: t.bfloat16() if t.is_floating_point() else t for k, t in tensors.items()}
    exact = {k: t.double() if t.is_floating_point() else t for k, t in rounded.items()}
    expected = run(naive_objective, exact, objective)
    supervised = expected["logp"][tensors["labels"] != IGNORE_INDEX]
    near = objective.threshold and (supervised - math.log(objective.threshold)).abs().min() < 0.03
    assume(not near)
    tolerance = 0.02 * max(1.0, abs(objective.exponent))
    found = run(linear_objective, rounded, objective)
    assert found["kept"] == expected["kept"]
    assert {found[f"grad_{k}"].dtype for k in ("hidden", "weight", "bias")} == {torch.bfloat16}
    for name, value in expected.items():
        size = float(value.abs().max())
        floor = 1e-14  # the oracle's own: autograd takes 1 - p^a back from 1
        atol = tolerance * size + floor
        torch.testing.assert_close(found[name].double(), value.double(), rtol=tolerance, atol=atol)


@pytest.mark.parametrize(("n", "ignored"), [(0, 0.0), (5, 1.0)])
def test_nothing_supervised_gives_zeros(n: int, ignored: float) -> None:
    found = run(linear_objective, case(n, 4, 7, 0, ignored=ignored), build("power", exponent=1))
    assert found["logp"].shape == (n,)
    assert found["grad_hidden"].shape == (n, 4)
    assert all((value == 0).all() for value in found.values())


@pytest.mark.parametrize("chunk_rows", [1, 3, 256])
def test_threshold_that_keeps_nothing_gives_zero_gradients(chunk_rows: int) -> None:
    tensors = case(8, 4, 7, 0, ignored=0.2)
    found = run(linear_objective, tensors, build("power", threshold=1.0), chunk_rows=chunk_rows)
    assert found["loss"] == found["kept"] == 0
    assert found["supervised"] == (tensors["labels"] != IGNORE_INDEX).sum()
    assert all((found[f"grad_{name}"] == 0).all() for name in ("hidden", "weight", "bias"))
    assert (found["logp"][tensors["labels"] != IGNORE_INDEX] < 0).all()


@given(tensors=cases, objective=objectives, extra=st.integers(1, 5))
def test_ignored_rows_change_no_bit(tensors: dict[str, torch.Tensor], objective: Objective, extra: int) -> None:
    n = len(tensors["labels"])
    more = dict(tensors)
    more["hidden"] = torch.cat([tensors["hidden"], torch.full((extra, tensors["hidden"].shape[1]), 1e3).double()])
    more["labels"] = torch.cat([tensors["labels"], torch.full((extra,), IGNORE_INDEX)])
    plain, padded = run(linear_objective, tensors, objective), run(linear_objective, more, objective)
    for name, value in plain.items():
        assert torch.equal(padded[name][:n] if name in ("logp", "grad_hidden") else padded[name], value)
    assert (padded["logp"][n:] == 0).all()
    assert (padded["grad_hidden"][n:] == 0).all()


@given(tensors=cases, objective=objectives, seed=st.integers(0, 2**31))
def test_order_of_rows_does_not_matter(tensors: dict[str, torch.Tensor], objective: Objective, seed: int) -> None:
    plain = run(linear_objective, tensors, objective)
    assume(away_from_threshold(objective, plain["logp"]))
    order = torch.randperm(len(tensors["labels"]), generator=torch.Generator().manual_seed(seed))
    mixed = run(
        linear_objective, {**tensors, "hidden": tensors["hidden"][order], "labels": tensors["labels"][order]}, objective
    )
    for name, value in plain.items():
        wanted = value[order] if name in ("logp", "grad_hidden") else value
        torch.testing.assert_close(mixed[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("hidden", "weight"), ("bias",)])
def test_frozen_inputs_get_no_gradient_and_change_no_other(frozen: tuple[str, ...]) -> None:
    tensors, objective = case(9, 4, 7, 0), build("power", exponent=0.5)
    whole = run(linear_objective, tensors, objective, chunk_rows=4)
    leaves = {k: t.clone().requires_grad_(k not in frozen) for k, t in tensors.items() if k != "labels"}
    loss = linear_objective(**leaves, labels=tensors["labels"], objective=objective, chunk_rows=4)[0]
    (3 * loss).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None if name in frozen else torch.equal(leaf.grad, whole[f"grad_{name}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_after_the_forward_pass_scales_every_gradient(dtype: torch.dtype) -> None:
    """Powers of two, so that scaling is exact: what divides the summed loss once is what divides the gradients."""
    tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in case(9, 4, 7, 0).items()}
    gradients = []
    for factor in (1.0, 0.125):
        leaves = {k: t.clone().requires_grad_() for k, t in tensors.items() if k != "labels"}
        loss = linear_objective(**leaves, labels=tensors["labels"], objective=build("power", exponent=1))[0]
        (loss * factor).backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    for whole, scaled in zip(*gradients, strict=True):
        assert torch.equal(whole * 0.125, scaled)


class CountingNll(Objective):
    """-log p that counts how often its weight is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def loss(self, logp: torch.Tensor) -> torch.Tensor:
        return -logp

    def weight(self, logp: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return torch.ones_like(logp)


def test_without_gradients_no_gradient_is_computed() -> None:
    tensors, objective = case(9, 4, 7, 0), CountingNll()
    tensors["weight"].requires_grad_()
    with_gradients = linear_objective(**tensors, objective=objective)
    assert objective.asked > 0
    objective.asked = 0
    with torch.no_grad():
        without = linear_objective(**tensors, objective=objective)
    assert objective.asked == 0
    for one, other in zip(with_gradients, without, strict=True):
        assert torch.equal(one.detach(), other)


def test_thresholds_are_decided_the_same_way_each_time() -> None:
    """On tokens as near to the threshold as can be: the same bits twice, and kept is what `keeps` says of log p."""
    tensors = {k: t.float() if t.is_floating_point() else t for k, t in case(64, 8, 16, 0, ignored=0).items()}
    logp = linear_objective(**tensors, objective=build("power"))[3]
    for edge in logp.exp().tolist():
        objective = build("power", exponent=1, threshold=min(edge, 1.0))
        first, second = run(linear_objective, tensors, objective), run(linear_objective, tensors, objective)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert first["kept"] == objective.keeps(first["logp"]).sum()


@pytest.mark.parametrize("label", [-1, -99, -101, 7, 10**6])
def test_labels_out_of_range_are_refused(label: int) -> None:
    tensors = case(3, 4, 7, 0, ignored=0)
    tensors["labels"][1] = label
    with pytest.raises(ValueError, match="valid are 0 to 6 and -100"):
        linear_objective(**tensors, objective=build("power"))


@pytest.mark.parametrize(
    ("name", "shape"), [("hidden", (3, 5)), ("hidden", (3,)), ("labels", (4,)), ("labels", (3, 1)), ("bias", (6,))]
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    tensors = case(3, 4, 7, 0, ignored=0)
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    with pytest.raises(ValueError, match=r"hidden|bias"):
        linear_objective(**tensors, objective=build("power"))
