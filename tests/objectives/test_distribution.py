"""EAFT, DEFT, GEM and label smoothing against their formulas, token by token, and at the ends of their parameters."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from raysft.objectives import DistributionObjective, build
from raysft.objectives.base import Rows

vectors = st.lists(st.floats(-8, 8), min_size=2, max_size=12)
seeds = st.integers(0, 2**31)


def rows_of(seed: int, n: int = 6, v: int = 30, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=rng, dtype=torch.float64) * scale
    return Rows(logits.to(dtype), torch.randint(0, v, (n,), generator=rng))


def gradient_of(loss: Callable[[torch.Tensor], torch.Tensor], rows: Rows) -> torch.Tensor:
    """Of the summed loss, written in terms of the logits [C, V]."""
    leaf = rows.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


def assert_is(objective: Any, rows: Rows, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Value and gradient of the objective against a loss [C] written in terms of the logits [C, V]."""
    assert isinstance(objective, DistributionObjective)
    torch.testing.assert_close(objective.token_loss(rows), loss(rows.logits), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.token_gradient(rows), gradient_of(loss, rows), rtol=1e-10, atol=1e-12)


def target(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    return values[torch.arange(len(values)), rows.labels]


def nll(rows: Rows) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: cross_entropy(logits, rows.labels, reduction="none")


def softmax(logits: list[float]) -> list[float]:
    """In plain floats, for what is checked without torch."""
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [w / sum(weights) for w in weights]


def single(logits: list[float], label: int) -> Rows:
    return Rows(torch.tensor([logits], dtype=torch.float64), torch.tensor([label]))


# --- EAFT -------------------------------------------------------------------------------------------------------------


@given(logits=vectors, alpha=st.floats(0, 10), k=st.integers(2, 15))
def test_eaft_in_plain_numbers(logits: list[float], alpha: float, k: int) -> None:
    largest = softmax(sorted(logits)[-k:])
    weight = (-sum(q * math.log(q) for q in largest) / math.log(k)) ** alpha
    p = softmax(logits)
    objective, rows = build("eaft", alpha=alpha, top_k=k), single(logits, 0)
    assert objective.token_loss(rows).item() == pytest.approx(-weight * math.log(p[0]), rel=1e-8, abs=1e-12)
    expected = [weight * (q - (v == 0)) for v, q in enumerate(p)]
    assert objective.token_gradient(rows)[0].tolist() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@given(seed=seeds, alpha=st.floats(0, 3), k=st.sampled_from([2, 5, 20, 30, 100]))
def test_eaft_weighs_by_the_entropy_of_the_largest_logits(seed: int, alpha: float, k: int) -> None:
    rows = rows_of(seed)
    largest = rows.logits.sort(dim=1, descending=True).values[:, :k]
    entropy = torch.distributions.Categorical(logits=largest).entropy() / math.log(k)
    assert_is(build("eaft", alpha=alpha, top_k=k), rows, lambda z: entropy**alpha * nll(rows)(z))


@given(seed=seeds)
def test_eaft_of_alpha_0_is_minus_log_p(seed: int) -> None:
    rows = rows_of(seed)
    assert_is(build("eaft", alpha=0), rows, nll(rows))


def test_eaft_on_an_even_choice_of_k_is_minus_log_p() -> None:
    """An entropy of ln k is divided by ln k."""
    rows = Rows(torch.zeros(1, 20).double(), torch.tensor([3]))
    assert build("eaft", alpha=2).token_loss(rows).item() == pytest.approx(math.log(20), rel=1e-12)


@pytest.mark.parametrize("gap", [10.0, 14.0, 17.0, 20.0])
def test_eafts_entropy_of_a_near_certain_choice_keeps_its_digits(gap: float) -> None:
    """One logit ahead of 20 others by so much that fp32 rounds its probability to 1, or nearly."""
    logits = torch.zeros(1, 20)
    logits[0, 0] = gap
    rest = 19 * math.exp(-gap)  # (1 - p)/p
    entropy = math.log1p(rest) + gap * rest / (1 + rest)
    found = build("eaft").token_gradient(Rows(logits, torch.tensor([1])))[0, 1].item()
    assert -found == pytest.approx(entropy / math.log(20) * (1 - math.exp(-gap) / (1 + rest)), rel=1e-4)


# --- DEFT -------------------------------------------------------------------------------------------------------------


@given(logits=vectors)
def test_deft_in_plain_numbers(logits: list[float]) -> None:
    p = softmax(logits)
    a = sum(q * q for q in p)
    rows = single(logits, 1)
    loss = (1 - p[1] ** a) / a
    assert build("deft").token_loss(rows).item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
    expected = [p[1] ** a * (q - (v == 1)) for v, q in enumerate(p)]
    assert build("deft").token_gradient(rows)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seed=seeds)
def test_deft_has_an_exponent_of_its_own_for_each_token(seed: int) -> None:
    rows = rows_of(seed)
    a = rows.logits.softmax(1).square().sum(1)
    assert_is(build("deft"), rows, lambda z: (1 - target(z.softmax(1), rows) ** a) / a)


def test_deft_on_a_certain_model_is_minus_p() -> None:
    """Of a one-hot distribution the exponent is 1."""
    rows = Rows(torch.tensor([[30.0, 0.0, -2.0], [0.0, 25.0, 1.0]]).double(), torch.tensor([1, 1]))
    p = target(rows.logits.softmax(1), rows)
    torch.testing.assert_close(build("deft").token_loss(rows), 1 - p, rtol=1e-5, atol=1e-10)
    exponent_1 = gradient_of(lambda z: -target(z.softmax(1), rows), rows)
    torch.testing.assert_close(build("deft").token_gradient(rows), exponent_1, rtol=1e-4, atol=1e-18)


def test_deft_on_an_undecided_model_is_nearly_minus_log_p() -> None:
    """Of an even distribution over V tokens the exponent is 1/V."""
    rows = Rows(torch.zeros(1, 5000).double(), torch.tensor([7]))
    assert build("deft").token_loss(rows).item() == pytest.approx(math.log(5000), rel=1e-3)
    gradient = gradient_of(nll(rows), rows)
    torch.testing.assert_close(build("deft").token_gradient(rows), gradient, rtol=2e-3, atol=0)


# --- GEM --------------------------------------------------------------------------------------------------------------


@given(logits=vectors, beta=st.floats(0.05, 1), link=st.sampled_from(["linear", "logsigmoid"]))
def test_gem_in_plain_numbers(logits: list[float], beta: float, link: str) -> None:
    q = softmax([z / beta for z in logits])
    gaps = [z - logits[0] for z in logits]
    w = [1.0 if link == "linear" else 1 / (1 + math.exp(-0.01 * g)) for g in gaps]
    pushed = [a * b for a, b in zip(q, w, strict=True)]
    objective, rows = build("gem", beta=beta, link=link), single(logits, 0)
    loss = sum(a * g for a, g in zip(pushed, gaps, strict=True))
    assert objective.token_loss(rows).item() == pytest.approx(loss, rel=1e-9, abs=1e-11)
    expected = [-sum(pushed[1:]), *pushed[1:]]
    assert objective.token_gradient(rows)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


@given(seed=seeds, beta=st.sampled_from([0.1, 0.7, 1.0]))
def test_gem_of_the_linear_link_pulls_by_q_minus_onehot(seed: int, beta: float) -> None:
    rows = rows_of(seed)
    q = (rows.logits / beta).softmax(1)
    expected = q - torch.nn.functional.one_hot(rows.labels, 30)
    torch.testing.assert_close(build("gem", beta=beta).token_gradient(rows), expected, rtol=1e-9, atol=1e-12)
    assert_is(build("gem", beta=beta), rows, lambda z: (q * (z - target(z, rows)[:, None])).sum(1))


@given(seed=seeds)
def test_gem_of_beta_1_has_the_gradient_of_minus_log_p(seed: int) -> None:
    rows = rows_of(seed)
    gradient = gradient_of(nll(rows), rows)
    torch.testing.assert_close(build("gem", beta=1).token_gradient(rows), gradient, rtol=1e-10, atol=1e-12)


@given(seed=seeds)
def test_gem_of_the_logsigmoid_link_is_the_authors_loss(seed: int) -> None:
    """sum_v sg(q_v) logsigmoid(0.01 (z_y - z_v))/-0.01, up to a constant: the same gradient, as their code has it."""
    rows = rows_of(seed)
    q = (rows.logits / 0.7).softmax(1)

    def loss(z: torch.Tensor) -> torch.Tensor:
        gaps = target(z, rows)[:, None] - z
        return (q * torch.nn.functional.logsigmoid(0.01 * gaps) / -0.01).sum(1)

    found = build("gem", link="logsigmoid").token_gradient(rows)
    torch.testing.assert_close(found, gradient_of(loss, rows), rtol=1e-9, atol=1e-12)


# --- label smoothing --------------------------------------------------------------------------------------------------


@given(seed=seeds, epsilon=st.floats(0, 0.99))
def test_label_smoothing_is_torchs(seed: int, epsilon: float) -> None:
    rows = rows_of(seed)
    assert_is(
        build("label_smoothing", epsilon=epsilon),
        rows,
        lambda z: cross_entropy(z, rows.labels, reduction="none", label_smoothing=epsilon),
    )


@given(logits=vectors, epsilon=st.floats(0, 0.99))
def test_label_smoothing_in_plain_numbers(logits: list[float], epsilon: float) -> None:
    p, v = softmax(logits), len(logits)
    objective, rows = build("label_smoothing", epsilon=epsilon), single(logits, 0)
    loss = -(1 - epsilon) * math.log(p[0]) - epsilon * sum(map(math.log, p)) / v
    assert objective.token_loss(rows).item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
    expected = [q - epsilon / v - (1 - epsilon) * (i == 0) for i, q in enumerate(p)]
    assert objective.token_gradient(rows)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seed=seeds)
def test_no_smoothing_is_minus_log_p(seed: int) -> None:
    rows = rows_of(seed)
    assert_is(build("label_smoothing", epsilon=0), rows, nll(rows))
