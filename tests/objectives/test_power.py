"""f(p) and s(p) of the power family against 120 decimal digits, and what they are in the paper's special cases."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from raysft.errors import InputError
from raysft.objectives import Objective, Power, build
from raysft.objectives.power import MAX_LOG

GIVEN = [-0.5, 0.0, 1e-6, 0.5, 1.0, 2.0, 10.0]
exponents = st.sampled_from(GIVEN) | st.floats(-3, 20).filter(lambda a: a == 0 or abs(a) > 1e-60)
# From certain to hopeless: gaps between logits of 100 and of 10,000 are among them.
logps = st.sampled_from([0.0, -1e-30, -1e-8, -100.0, -1e4]) | st.floats(-30, -1e-30) | st.floats(-1e4, -30)
dtypes = st.sampled_from([torch.float32, torch.float64])


def oracle(exponent: float, logp: float) -> tuple[float, float]:
    """(f(p), s(p)) with MAX_LOG as the bound of a log p."""
    with localcontext() as context:
        context.prec = 120
        a, log_p = Decimal(exponent), Decimal(logp)
        power = min(a * log_p, Decimal(MAX_LOG)).exp()
        return float(-log_p if a == 0 else (1 - power) / a), float(power)


def tolerance(exponent: float, logp: float, dtype: torch.dtype) -> dict[str, float]:
    """The product a log p is rounded once, and exp turns that into a relative error of its size; it may underflow."""
    info = torch.finfo(dtype)
    return {"rel": 4 * info.eps * (1 + abs(exponent * logp)), "abs": 4 * info.tiny / min(1, abs(exponent) or 1)}


@given(exponent=exponents, logp=logps, dtype=dtypes)
@example(exponent=1e-6, logp=-1e-8, dtype=torch.float32)
@example(exponent=10.0, logp=-1e-30, dtype=torch.float32)
@example(exponent=-0.5, logp=-1e4, dtype=torch.float32)
@example(exponent=-0.01, logp=-1e4, dtype=torch.float32)
@example(exponent=1e-50, logp=-1.0, dtype=torch.float32)
@example(exponent=-1e-15, logp=-1.0, dtype=torch.float32)
def test_loss_and_weight_equal_the_formulas(exponent: float, logp: float, dtype: torch.dtype) -> None:
    objective = build("power", exponent=exponent)
    given_logp = torch.tensor([logp], dtype=dtype)
    loss, weight = oracle(exponent, given_logp.item())
    if abs(loss) > torch.finfo(dtype).max:
        return  # only exponents so close to 0 from below that log p has to be far beyond what a softmax gives
    near = tolerance(exponent, given_logp.item(), dtype)
    assert objective.loss(given_logp).item() == pytest.approx(loss, **near)
    assert objective.weight(given_logp).item() == pytest.approx(weight, **near)
    assert objective.loss(given_logp).dtype == objective.weight(given_logp).dtype == dtype


@given(exponent=exponents, logp=st.floats(-50, 0))
def test_weight_is_minus_the_derivative_times_p(exponent: float, logp: float) -> None:
    """d f / d log p = f'(p) p, by autograd; below the bound of a negative exponent both stay constant.

    Autograd forms e^x of expm1 as (e^x - 1) + 1, which costs it what 1e-15 allows for.
    """
    objective = build("power", exponent=exponent)
    at = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    objective.loss(at).sum().backward()
    assert at.grad is not None
    weight = objective.weight(at.detach())
    if exponent * logp > MAX_LOG:
        assert weight.item() == pytest.approx(math.exp(MAX_LOG), rel=1e-14)
    else:
        assert -at.grad.item() == pytest.approx(weight.item(), rel=1e-12, abs=1e-15)


@given(st.lists(logps, min_size=1, max_size=20))
def test_exponent_0_is_exactly_minus_log_p(values: list[float]) -> None:
    logp = torch.tensor(values)
    assert torch.equal(build("power", exponent=0).loss(logp), -logp)
    assert torch.equal(build("power", exponent=0).weight(logp), torch.ones_like(logp))


@given(q=st.floats(0.01, 1), p=st.floats(1e-6, 1))
def test_positive_exponents_are_generalised_cross_entropy(q: float, p: float) -> None:
    """(1 - p^q)/q, as arXiv 1805.07836 has it."""
    logp = torch.tensor([math.log(p)], dtype=torch.float64)
    assert build("power", exponent=q).loss(logp).item() == pytest.approx((1 - p**q) / q, rel=1e-12, abs=1e-14)
    assert build("power", exponent=q).weight(logp).item() == pytest.approx(p**q, rel=1e-12)


def test_tiny_exponents_go_over_into_minus_log_p() -> None:
    logp = torch.linspace(-20, 0, 101)
    near = build("power", exponent=1e-6).loss(logp)
    torch.testing.assert_close(near, -logp, rtol=2e-5, atol=0)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
def test_exponent_1_has_the_gradient_of_dynamic_fine_tuning(values: list[float]) -> None:
    """1 - p and sg(p)(-log p) move the logits alike, though their values differ (arXiv 2508.05629)."""
    gradients = []
    for dynamic in (False, True):
        logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        logp = torch.log_softmax(logits, 0)[:1]
        loss = logp.exp().detach() * -logp if dynamic else build("power", exponent=1).loss(logp)
        loss.sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-15)


@given(exponent=exponents, logp=st.lists(st.floats(-1e4, 0), min_size=2, max_size=20))
def test_loss_falls_with_p_and_weight_is_never_negative(exponent: float, logp: list[float]) -> None:
    objective: Objective = build("power", exponent=exponent)
    at = torch.tensor(sorted(logp), dtype=torch.float64)
    assert (objective.loss(at).diff() <= 0).all()
    assert (objective.weight(at) >= 0).all()


@given(exponent=st.floats(-3, -1e-3))
def test_hopeless_tokens_cannot_make_a_step_infinite(exponent: float) -> None:
    logp = torch.full((1000,), -1e4)
    objective = build("power", exponent=exponent)
    assert objective.loss(logp).sum().isfinite()
    assert objective.weight(logp).square().sum().isfinite()


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "progress", "exponent"),
    [
        ("linear", 0.0, 2.0),
        ("linear", 0.25, 1.25),
        ("linear", 0.5, 0.5),
        ("linear", 0.999, -0.997),
        ("cosine", 0.0, 2.0),
        ("cosine", 0.25, 2 - 3 * (1 - math.sqrt(0.5)) / 2),
        ("cosine", 0.5, 0.5),
        ("cosine", 0.999, -1 + 3 * math.sin(math.pi * 0.0005) ** 2),
    ],
)
def test_exponent_moves_from_2_to_minus_1(schedule: str, progress: float, exponent: float) -> None:
    objective = build("power", exponent=2, final_exponent=-1, schedule=schedule, threshold=0.1, upper=0.8)
    step = objective.at(progress)
    assert step.exponent == pytest.approx(exponent, rel=1e-12)
    assert step == build("power", exponent=step.exponent, threshold=0.1, upper=0.8)
    logp = torch.tensor([-1.0], dtype=torch.float64)
    assert step.weight(logp).item() == pytest.approx(math.exp(-exponent), rel=1e-12)


def test_each_step_follows_from_the_whole_schedule() -> None:
    """Not from the step before it, which a resumed training has not seen."""
    objective = build("power", exponent=0, final_exponent=1)
    objective.at(0.3)
    assert objective.at(0.6).exponent == pytest.approx(0.6)


@given(progress=st.floats(0, 1, exclude_max=True), exponent=st.floats(-3, 20))
def test_without_a_final_exponent_it_stays(progress: float, exponent: float) -> None:
    objective = build("power", exponent=exponent)
    assert objective.at(progress) == objective


@given(progress=st.floats(0, 1, exclude_max=True), schedule=st.sampled_from(["linear", "cosine"]))
def test_an_exponent_that_moves_to_itself_stays(progress: float, schedule: str) -> None:
    assert build("power", exponent=0.5, final_exponent=0.5, schedule=schedule).at(progress) == Power(exponent=0.5)


@given(progress=st.lists(st.floats(0, 1, exclude_max=True), min_size=2), schedule=st.sampled_from(["linear", "cosine"]))
def test_an_exponent_never_turns_back(progress: list[float], schedule: str) -> None:
    objective = build("power", exponent=0, final_exponent=10, schedule=schedule)
    exponents = [objective.at(share).exponent for share in sorted(progress)]
    assert exponents == sorted(exponents)
    assert all(0 <= e <= 10 for e in exponents)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"schedule": "cosine"}, "schedule says how the exponent moves: give a final_exponent as well."),
        ({"final_exponent": 1, "schedule": "step"}, "schedule: must be 'linear' or 'cosine', not 'step'."),
        ({"final_exponent": math.inf}, "final_exponent: must be a finite number, not inf."),
        ({"final_exponent": "one"}, "final_exponent: must be a number, not 'one'."),
    ],
)
def test_schedules_that_say_nothing_are_refused(params: dict, told: str) -> None:
    with pytest.raises(InputError) as refused:
        build("power", **params)
    assert told in str(refused.value)
