"""The chunked head against full logits and autograd, and what it promises of memory, work, dtypes and refusals."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysft.objectives import IGNORE_INDEX, Objective, Power, build, linear_objective, naive_objective, projection
from raysft.objectives.base import Selection
from raysft.objectives.conformance import INTERVALS, Case, assert_close, clear_of_edges, make_case, run, tiles_of
from raysft.objectives.head import Reference
from raysft.objectives.projection import Gradients

exponents = st.sampled_from([-0.5, 0.0, 1e-6, 0.5, 1.0, 2.0, 10.0])
thresholds = st.sampled_from([None, 0.0, 0.05, 0.2, 0.9])
keeps = st.sampled_from(["above", "below"])
powers = st.builds(lambda a, t, k: build("power", exponent=a, threshold=t, keep=k), exponents, thresholds, keeps)
softcaps = st.sampled_from([None, 0.5, 3.0, 30.0])
scales = st.sampled_from([1.0, 0.25, 3.0])
KINDS = ["power", "gem", "asft"]  # of p alone, of the whole distribution, and that with a base model
FLOATS = ("hidden", "weight", "bias")


def leaves_of(case: Case, frozen: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    return {name: getattr(case, name).clone().requires_grad_(name not in frozen) for name in FLOATS}


def loss_of(leaves: dict[str, torch.Tensor], case: Case, objective: Any, **options: Any) -> torch.Tensor:
    return linear_objective(**leaves, labels=case.labels, objective=objective, reference=case.reference, **options)[0]


# --- against full logits ----------------------------------------------------------------------------------------------


@given(
    v=st.integers(2, 40),
    seed=st.integers(0, 2**31),
    tile=st.integers(1, 13),
    objective=powers | st.sampled_from(KINDS).map(build),
    chunk_rows=st.integers(1, 13),
    softcap=softcaps,
    scale=scales,
)
@settings(max_examples=200)
def test_scaled_and_capped_logits_over_several_tiles(
    v: int, seed: int, tile: int, objective: Any, chunk_rows: int, softcap: float | None, scale: float
) -> None:
    case = make_case(11, 5, v, seed, softcap=softcap, scale=scale)
    expected = run(naive_objective, case, objective)
    assume(clear_of_edges(objective, expected["logp"][case.supervised], 1e-9))
    with tiles_of(tile):
        found = run(linear_objective, case, objective, chunk_rows=chunk_rows)
    assert found["loss"].dtype == found["logp"].dtype == torch.float64
    assert_close(found, expected, 1e-9)


def test_soft_capping_bounds_the_logits() -> None:
    """By hand: z = 2 tanh(z/2) of 3 * (1, -1)."""
    z = 2 * math.tanh(1.5)
    logp = linear_objective(
        torch.tensor([[1.0]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.tensor([1]),
        build("power"),
        scale=3.0,
        softcap=2.0,
    )[3]
    assert logp.item() == pytest.approx(-2 * z - math.log1p(math.exp(-2 * z)), rel=1e-6)


def test_strides_do_not_matter() -> None:
    case = make_case(9, 4, 7).to(torch.float32)
    strided = replace(case, hidden=case.hidden.T.contiguous().T, weight=case.weight.T.contiguous().T)
    assert not strided.weight.is_contiguous()
    with tiles_of(3):
        expected = run(linear_objective, case, build("power", exponent=1))
        assert_close(run(linear_objective, strided, build("power", exponent=1)), expected, 1e-6)


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
@pytest.mark.parametrize("tile", [1, 2, 3])
def test_extreme_logits_keep_their_digits(
    exponent: float, threshold: float | None, dtype: torch.dtype, tile: int
) -> None:
    """p -> 0 and p -> 1: every logit's gradient within 1e-4 of itself, where p - 1 would have lost it.

    Only a softmax below the dtype's smallest number may be lost. At p -> 1, log p is -e^-u, and 2e-6 is how fp32
    rounds a u of 40.
    """
    logits = torch.tensor(EXTREME, dtype=torch.float64)
    labels = torch.zeros(len(EXTREME), dtype=torch.long)
    objective = build("power", exponent=exponent, threshold=threshold)
    assert isinstance(objective, Objective)
    weight = logits.T.contiguous().to(dtype).requires_grad_()
    with tiles_of(tile):
        loss, _, kept, logp = linear_objective(torch.eye(len(EXTREME), dtype=dtype), weight, labels, objective)
    loss.backward()

    others = torch.logsumexp(logits[:, 1:] - logits[:, :1], dim=1)  # log((1 - p)/p)
    exact = -torch.logaddexp(torch.zeros_like(others), others)
    one_minus_p = torch.sigmoid(others)
    softmax = torch.softmax(logits, dim=1)
    learned = objective.weight(exact)[:, None]
    expected = learned * torch.cat([-one_minus_p[:, None], softmax[:, 1:]], dim=1)
    torch.testing.assert_close(logp.double(), exact, rtol=4e-6, atol=1e-30)
    torch.testing.assert_close(loss.double(), objective.loss(exact).sum(), rtol=1e-5, atol=0)
    assert int(kept) == int(objective.keeps(exact).sum())
    assert weight.grad is not None
    smallest = torch.finfo(dtype).smallest_normal * float(learned.max() + 1)
    torch.testing.assert_close(weight.grad.T.double(), expected, rtol=1e-4, atol=smallest)
    assert (logp <= 0).all()


# --- bf16 and autocast ------------------------------------------------------------------------------------------------


def rounded(case: Case) -> Case:
    """Its values as bf16 has them."""
    return case.to(torch.bfloat16)


@given(seed=st.integers(0, 2**31), objective=powers | st.sampled_from(KINDS).map(build), tile=st.sampled_from([5, 64]))
@settings(max_examples=60)
def test_bf16_inputs_round_the_gradients_only(seed: int, objective: Any, tile: int) -> None:
    """Against float64 on the same values: logits are fp32, and so are the loss and what is kept.

    The gradients' products have operands of 8 bits: 2 % of the largest entry.
    """
    case = rounded(make_case(24, 16, 32, seed))
    expected = run(naive_objective, case.to(torch.float64), objective)
    assume(clear_of_edges(objective, expected["logp"][case.supervised], 1e-4))
    with tiles_of(tile):
        found = run(linear_objective, case, objective)
    assert {found[f"grad_{name}"].dtype for name in FLOATS} == {torch.bfloat16}
    assert found["loss"].dtype == found["logp"].dtype == torch.float32
    for tolerance, names in ((1e-4, ("loss", "kept", "supervised", "logp")), (0.02, [f"grad_{n}" for n in FLOATS])):
        assert_close({n: found[n] for n in names}, {n: expected[n] for n in names}, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_rows", [3, 112])
def test_autocast_rounds_the_gradients_only(kind: str, hidden_dtype: torch.dtype, chunk_rows: int) -> None:
    """A weight in fp32 beside hidden states as autocast leaves them: each gets a gradient in its own dtype."""
    case = make_case(24, 16, 32).to(torch.float32)
    case = replace(case, hidden=case.hidden.bfloat16().to(hidden_dtype))
    expected = run(naive_objective, case.to(torch.float64), build(kind))
    with torch.autocast("cpu", torch.bfloat16), tiles_of(7):
        found = run(linear_objective, case, build(kind), chunk_rows=chunk_rows)
    assert found["grad_hidden"].dtype == hidden_dtype
    assert found["grad_weight"].dtype == found["grad_bias"].dtype == torch.float32
    assert found["loss"].dtype == found["logp"].dtype == torch.float32
    for tolerance, names in ((1e-4, ("loss", "kept", "supervised", "logp")), (0.02, [f"grad_{n}" for n in FLOATS])):
        assert_close({n: found[n] for n in names}, {n: expected[n] for n in names}, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_are_decided_on_fp32_logits_under_autocast(kind: str) -> None:
    """On tokens as near to a threshold as can be, to the bit: log p is that of the same values without autocast.

    The hidden states are such as bf16 has; the weight is not.
    """
    case = make_case(40, 8, 16, ignored=0).to(torch.float32)
    halved = replace(case, hidden=case.hidden.bfloat16())
    case = replace(case, hidden=halved.hidden.float())
    for edge in run(linear_objective, case, build(kind))["logp"].exp().tolist():
        objective = build(kind, threshold=min(edge, 1.0))
        plain = run(linear_objective, case, objective)
        with torch.autocast("cpu", torch.bfloat16):
            cast = run(linear_objective, halved, objective)
        assert torch.equal(cast["logp"], plain["logp"])
        assert cast["kept"] == plain["kept"]


def test_a_base_model_of_another_dtype_will_do() -> None:
    case = make_case(9, 4, 7)
    reference = rounded(case).reference
    expected = run(naive_objective, replace(case, reference=Reference(*(t.double() for t in reference))), build("asft"))
    assert_close(run(linear_objective, replace(case, reference=reference), build("asft")), expected, 1e-9)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("hidden", "weight"), ("bias",)])
def test_frozen_inputs_get_no_gradient_and_change_no_other(kind: str, frozen: tuple[str, ...]) -> None:
    """Weight and bias are frozen under LoRA."""
    case, objective = make_case(9, 4, 7), build(kind)
    whole = run(linear_objective, case, objective, chunk_rows=4)
    leaves = leaves_of(case, frozen)
    (3 * loss_of(leaves, case, objective, chunk_rows=4)).backward()
    for name, leaf in leaves.items():
        if name in frozen:
            assert leaf.grad is None
        else:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, whole[f"grad_{name}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_after_the_forward_pass_scales_every_gradient(dtype: torch.dtype) -> None:
    """Powers of two, so that scaling is exact: what divides the summed loss once is what divides the gradients."""
    case = make_case(9, 4, 7).to(dtype)
    gradients = []
    for factor in (1.0, 0.125):
        leaves = leaves_of(case)
        (loss_of(leaves, case, build("power", exponent=1)) * factor).backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    for whole, scaled in zip(*gradients, strict=True):
        assert whole is not None
        assert scaled is not None
        assert torch.equal(whole * 0.125, scaled)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one graph"])
def test_gradients_of_two_calls_add_up(together: bool) -> None:
    """As over micro-batches: each with its own factor, into the same weight."""
    first, other = make_case(9, 4, 7, seed=1), make_case(5, 4, 7, seed=2)
    objective, leaves = build("power", exponent=0.5), leaves_of(first)
    other_leaves = {**leaves, "hidden": other.hidden.clone().requires_grad_()}
    if together:
        (3 * loss_of(leaves, first, objective) + 3 * loss_of(other_leaves, other, objective)).backward()
    else:
        (3 * loss_of(leaves, first, objective)).backward()
        (3 * loss_of(other_leaves, other, objective)).backward()
    shared = {"weight": first.weight, "bias": first.bias}
    apart = [run(naive_objective, case, objective) for case in (first, replace(other, **shared))]
    for name in shared:
        expected = apart[0][f"grad_{name}"] + apart[1][f"grad_{name}"]
        torch.testing.assert_close(leaves[name].grad, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(leaves["hidden"].grad, apart[0]["grad_hidden"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other_leaves["hidden"].grad, apart[1]["grad_hidden"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("frozen", [(), ("weight", "bias"), ("hidden", "bias"), ("hidden", "weight")])
def test_a_second_backward_pass_is_an_error_instead_of_scaled_twice(
    frozen: tuple[str, ...], dtype: torch.dtype
) -> None:
    case = make_case(9, 4, 7).to(dtype)
    leaves = leaves_of(case, frozen)
    loss = 3 * loss_of(leaves, case, build("power"))
    loss.backward(retain_graph=True)
    before = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for name, gradient in before.items():
        assert torch.equal(leaves[name].grad, gradient)


class CountingNll(Objective):
    """-log p that counts how often its weight is asked for."""

    type: Literal["counting_nll"] = "counting_nll"

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return -logp

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        ASKED.append(len(logp))
        return torch.ones_like(logp)


ASKED: list[int] = []


@pytest.mark.parametrize("frozen", [(), ("hidden",), ("weight", "bias")])
def test_without_gradients_no_gradient_is_computed(frozen: tuple[str, ...]) -> None:
    case = make_case(9, 4, 7)
    leaves = leaves_of(case, frozen)
    ASKED.clear()
    with_gradients = linear_objective(**leaves, labels=case.labels, objective=CountingNll())
    assert ASKED
    ASKED.clear()
    with torch.no_grad():
        without = linear_objective(**leaves, labels=case.labels, objective=CountingNll())
    assert not ASKED
    for one, other in zip(with_gradients, without, strict=True):
        assert torch.equal(one.detach(), other)


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_thresholds_are_decided_the_same_way_each_time() -> None:
    """On tokens as near to the threshold as can be: the same bits twice, and kept is what `keeps` says of log p."""
    case = make_case(64, 8, 16, ignored=0).to(torch.float32)
    for edge in run(linear_objective, case, build("power"))["logp"].exp().tolist():
        objective = build("power", exponent=1, threshold=min(edge, 1.0))
        first, second = run(linear_objective, case, objective), run(linear_objective, case, objective)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert first["kept"] == objective.keeps(first["logp"]).sum()


@pytest.fixture
def rows_worked_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each product of the gradients had, one entry for each chunk."""
    counts: list[int] = []
    original = Gradients.add

    def add(self: Gradients, layer: Any, tile: slice, logits: torch.Tensor, *more: Any) -> None:
        if tile.start == 0:
            counts.append(len(logits))
        original(self, layer, tile, logits, *more)

    monkeypatch.setattr(Gradients, "add", add)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_outside_a_threshold_cost_no_work_of_the_gradients(kind: str, rows_worked_on: list[int]) -> None:
    case = make_case(60, 8, 16, ignored=0.2)
    p = run(linear_objective, case, build(kind))["logp"].exp()
    assert sum(rows_worked_on) == case.supervised.sum()
    for share in (0.0, 0.3, 0.9):
        rows_worked_on.clear()
        objective = build(kind, threshold=float(p[case.supervised].quantile(1 - share)) * 1.0001)
        with tiles_of(5):
            kept = run(linear_objective, case, objective, chunk_rows=7)["kept"]
        assert sum(rows_worked_on) == kept
        assert abs(int(kept) - share * int(case.supervised.sum())) <= 2
        assert 0 not in rows_worked_on  # a chunk without a kept token is skipped whole


# --- memory -----------------------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The number of elements of every tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.made += [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_of_the_logits_is_never_held(kind: str, dtype: torch.dtype) -> None:
    n, h, v, chunk_rows = 64, 8, 300, 4
    case = make_case(n, h, v, ignored=0, softcap=5.0, scale=0.5).to(dtype)
    leaves = leaves_of(case)
    with tiles_of(50), Sizes() as forward:
        loss = loss_of(leaves, case, build(kind), chunk_rows=chunk_rows, softcap=5.0, scale=0.5)
    with Sizes() as backward:
        loss.backward()
    assert max(forward.made) <= max(v * h, chunk_rows * v, n * h)
    assert 0 < max(backward.made) <= v * h  # the weight's gradient itself


def test_a_frozen_weight_has_no_gradient_in_memory() -> None:
    n, h, v, chunk_rows = 16, 32, 100, 2
    case = make_case(n, h, v, ignored=0).to(torch.float32)
    leaves = leaves_of(case, frozen=("weight", "bias"))
    with tiles_of(10), Sizes() as sizes:
        loss_of(leaves, case, build("power"), chunk_rows=chunk_rows).backward()
    assert max(sizes.made) < v * h


# --- broken numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_makes_the_loss_nan(kind: str, softcap: float | None, bad: float) -> None:
    """Two tokens of opposite logits, so that an infinity would pass for p = 0 or p = 1, and soft-capping for sound."""
    hidden, weight = torch.tensor([[bad], [1.0]]), torch.tensor([[1.0], [-1.0]])
    reference = Reference(torch.ones(2, 1), weight)
    for interval in INTERVALS:
        for label in (0, 1):
            objective, labels = build(kind, **interval), torch.tensor([label, 0])
            loss = linear_objective(hidden, weight, labels, objective, softcap=softcap, reference=reference)[0]
            assert loss.isnan(), f"{loss} with label {label} and {interval}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_a_broken_weight_makes_the_loss_nan(kind: str, threshold: float | None) -> None:
    case = make_case(6, ignored=0)
    case.weight[3, 1] = math.nan
    assert run(linear_objective, case, build(kind, threshold=threshold))["loss"].isnan()


# --- refusals ---------------------------------------------------------------------------------------------------------


def call(case: Case, objective: Selection, **changes: Any) -> Callable[[], Any]:
    inputs = {name: getattr(case, name) for name in (*FLOATS, "labels")}
    return lambda: linear_objective(**(inputs | changes), objective=objective)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [-1, -99, -101, 7, 10**6])
def test_labels_out_of_range_are_refused(label: int) -> None:
    case = make_case(3, 4, 7, ignored=0)
    case.labels[1] = label
    with pytest.raises(ValueError, match=rf"labels go from .*{label}.*valid are 0 to 6 and -100"):
        call(case, build("power"))()


def test_the_ends_of_the_vocabulary_and_the_ignored_label_are_none_of_them() -> None:
    case = make_case(3, 4, 7)
    labels = torch.tensor([0, 6, IGNORE_INDEX])
    assert call(case, build("power"), labels=labels)()[1] == 2


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("hidden", (3, 5)),
        ("hidden", (3,)),
        ("hidden", (1, 3, 4)),
        ("labels", (4,)),
        ("labels", (3, 1)),
        ("bias", (6,)),
        ("weight", (7,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    case = make_case(3, 4, 7, ignored=0)
    with pytest.raises(ValueError, match=r"hidden|bias"):
        call(case, build("power"), **{name: torch.zeros(shape, dtype=getattr(case, name).dtype)})()


def test_dtypes_that_differ_are_refused_outside_autocast() -> None:
    case = make_case(3, 4, 7, ignored=0)
    told = "hidden is torch.bfloat16 and weight torch.float64: make them one floating dtype, or autocast"
    with pytest.raises(ValueError, match=told):
        call(case, build("power"), hidden=case.hidden.bfloat16())()
    with pytest.raises(ValueError, match=r"hidden is torch\.int64 and weight torch\.int64"):
        call(case, build("power"), hidden=case.hidden.long(), weight=case.weight.long())()


def test_an_objective_that_needs_a_base_model_is_refused_without_one() -> None:
    with pytest.raises(
        ValueError, match="asft needs the base model's hidden states and output weight: give a reference"
    ):
        call(make_case(3, 4, 7), build("asft"))()


@pytest.mark.parametrize(("rows", "tokens"), [(4, 7), (3, 8)])
def test_a_base_model_of_other_rows_or_tokens_is_refused(rows: int, tokens: int) -> None:
    reference = Reference(torch.zeros(rows, 2).double(), torch.zeros(tokens, 2).double())
    with pytest.raises(ValueError, match="is of other rows or another vocabulary"):
        call(make_case(3, 4, 7), build("asft"), reference=reference)()


def test_a_base_model_that_is_not_needed_changes_nothing() -> None:
    case = make_case(9, 4, 7)
    without = replace(case, reference=None)
    plain, spare = (run(linear_objective, c, build("power")) for c in (without, case))
    assert all(torch.equal(plain[name], spare[name]) for name in plain)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"softcap": 0.0}, "softcap (0.0)"),
        ({"softcap": -3.0}, "softcap (-3.0)"),
        ({"softcap": math.nan}, "softcap (nan)"),
        ({"chunk_rows": 0}, "chunk_rows (0)"),
        ({"labels": torch.tensor([1.0, 2.0, 3.0])}, "labels are torch.float32"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    case = make_case(3, 4, 7, ignored=0)
    with pytest.raises(ValueError, match=re.escape(told)):
        linear_objective(
            **{"hidden": case.hidden, "weight": case.weight, "labels": case.labels} | options, objective=Power()
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", [Power(exponent=0.5, threshold=0.001), build("gem"), build("asft")])
def test_cuda_equals_float64(dtype: torch.dtype, objective: Any) -> None:
    """Over several tiles of the vocabulary, half of the rows ignored, and in bf16 no token over a threshold."""
    with patch.dict(projection.TILE, cuda=64):
        case = make_case(96, 32, 200, ignored=0.5).to(dtype)
        expected = run(naive_objective, case.to(torch.float64), objective)
        named = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias}
        leaves = {name: t.detach().cuda().requires_grad_() for name, t in named.items()}
        reference = Reference(*(t.cuda() for t in case.reference))
        found = linear_objective(
            **leaves, labels=case.labels.cuda(), objective=objective, reference=reference, chunk_rows=40
        )
        (3 * found[0]).backward()
    assert found[2] == expected["kept"]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for name, t in {"loss": found[0], **{f"grad_{n}": leaf.grad for n, leaf in leaves.items()}}.items():
        size = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(t.detach().double().cpu(), expected[name], rtol=0, atol=tolerance * size)
