"""One suite for every objective, of this package or of another: what the head and the sweep rely on.

The author of an objective installs his package, so that its entry point is found, and writes in his own tests

    from mine import Mine
    from raysft.objectives.conformance import ObjectiveConformance


    class TestMine(ObjectiveConformance):
        objectives = [Mine(), Mine(gamma=3)]

Every test then runs once for each of these objectives, without a GPU. It needs pytest and hypothesis. An objective may
hold its loss constant where it has no bound, and its slope at what it was there; elsewhere s or token_gradient must be
the derivative of f or token_loss.
"""

import math
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from raysft.errors import InputError
from raysft.objectives import projection
from raysft.objectives.base import IGNORE_INDEX, DistributionObjective, Objective, Rows, Selection
from raysft.objectives.head import HeadOutput, Reference, linear_objective, naive_objective
from raysft.objectives.registry import build, known, name_of

AnyObjective = Objective | DistributionObjective
Outcome = dict[str, torch.Tensor]

# --- inputs of a head and what comes out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """hidden [N, H], weight [V, H], labels [N], bias [V] or None, and what else a head is called with."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    bias: torch.Tensor | None
    reference: Reference
    scale: float = 1.0
    softcap: float | None = None

    @property
    def supervised(self) -> torch.Tensor:
        """Whether each row has a label: bool [N]."""
        return self.labels != IGNORE_INDEX

    def to(self, dtype: torch.dtype) -> "Case":
        bias = None if self.bias is None else self.bias.to(dtype)
        reference = Reference(*(None if t is None else t.to(dtype) for t in self.reference))  # type: ignore[arg-type]
        return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype), bias=bias, reference=reference)

    def rows(self, which: torch.Tensor) -> "Case":
        """Only these rows, in this order: indices or bool [N]."""
        reference = self.reference._replace(hidden=self.reference.hidden[which])
        return replace(self, hidden=self.hidden[which], labels=self.labels[which], reference=reference)


def make_case(
    n: int = 8,
    h: int = 4,
    v: int = 9,
    seed: int = 0,
    *,
    ignored: float = 0.3,
    biased: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Case:
    """Random values in float64, about `ignored` of the labels ignored; no p comes near 0 or 1."""
    rng = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape, generator=rng, dtype=torch.float64) - 1

    labels = torch.randint(0, v, (n,), generator=rng)
    labels[torch.rand(n, generator=rng) < ignored] = IGNORE_INDEX
    bias = values(v) if biased else None
    # The base model may be narrower than the trained one.
    reference = Reference(values(n, 3), values(v, 3), values(v) if biased else None)
    return Case(values(n, h), values(v, h), labels, bias, reference, scale, softcap)


def run(head: Callable[..., HeadOutput], case: Case, objective: AnyObjective, **options: Any) -> Outcome:
    """What a head returns, and the gradients of three times its loss."""
    named = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias}
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in named.items()}
    loss, supervised, kept, logp = head(
        **leaves,
        labels=case.labels,
        objective=objective,
        scale=case.scale,
        softcap=case.softcap,
        reference=case.reference,
        **options,
    )
    (3 * loss).backward()
    gradients = {f"grad_{name}": t.grad for name, t in leaves.items() if t is not None and t.grad is not None}
    return {"loss": loss.detach(), "supervised": supervised, "kept": kept, "logp": logp, **gradients}


def tiles_of(columns: int) -> Any:
    """A context in which the head sees no more than so many columns of the vocabulary at once."""
    return patch.dict(projection.TILE, cpu=columns)


def assert_close(found: Outcome, expected: Outcome, tolerance: float) -> None:
    """Relative to the largest entry of each tensor; counts must be equal."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        atol = tolerance * size if value.is_floating_point() else 0
        torch.testing.assert_close(found[name].double(), value.double(), rtol=0, atol=atol, msg=_prefix(name))


def _prefix(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


# --- what objectives are tried on -------------------------------------------------------------------------------------

logps = st.sampled_from([0.0, -1e-30, -1e-8, -100.0, -1e4]) | st.floats(-30, -1e-30) | st.floats(-1e4, -30)
cases = st.builds(
    make_case,
    n=st.integers(0, 12),
    h=st.integers(1, 5),
    v=st.integers(2, 12),
    seed=st.integers(0, 2**31),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.5, 2.0]),
    softcap=st.sampled_from([None, 3.0]),
)
chunks = st.integers(1, 13)
tiles = st.integers(1, 14)
INTERVALS: tuple[dict[str, Any], ...] = (
    {},
    {"threshold": 0.1},
    {"threshold": 0.1, "keep": "below"},
    {"threshold": 0.05, "upper": 0.2},
)
intervals = st.sampled_from(INTERVALS)

# Rows of logits from certain to hopeless.
EXTREME = [
    [0.0, 0.0, 0.0],
    [0.0, -30.0, -100.0],
    [-100.0, 0.0, -101.0],
    [0.0, -1e4, -1e4],
    [-1e4, 0.0, -1e4],
    [1e4, 1e4, -1e4],
    [17.0, 0.0, -17.0],
    [0.0, 17.0, -17.0],
]


def on_interval(objective: AnyObjective, **interval: Any) -> AnyObjective:
    """The same objective with another interval of p, or with none."""
    none = {name: Selection.model_fields[name].default for name in Selection.model_fields if name != "type"}
    return objective.model_copy(update=none | interval)


def resolved(objective: AnyObjective) -> AnyObjective:
    """The objective of a step in the middle of the training, with no interval."""
    return on_interval(objective.at(0.5, torch.tensor([0.5, 1.0, 3.0])))


def clear_of_edges(objective: AnyObjective, logp: torch.Tensor, margin: float) -> bool:
    """Whether no token lies so near an end of the interval that round-off decides whether it is kept."""
    edges = [math.log(edge) for edge in (objective.threshold, objective.upper) if edge]
    return all(bool(((logp - edge).abs() > margin).all()) for edge in edges)


def random_rows(n: int, v: int, seed: int, scale: float) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    logits, reference = (torch.randn(n, v, generator=rng, dtype=torch.float64) * scale for _ in range(2))
    return Rows(logits, torch.randint(0, v, (n,), generator=rng), reference)


# --- the suite --------------------------------------------------------------------------------------------------------

# Nothing is timed, because machines are noisy; and a subclass runs the same functions as its parent does.
# One failure is told, as what it is: several at once would come as a group.
thorough = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)


class ObjectiveConformance:
    """Derive from it, and set `objectives` to those of your class that differ in kind; see the module."""

    objectives: ClassVar[Sequence[AnyObjective]] = ()
    fp32_tolerance: ClassVar[float] = 1e-4
    """By how much loss and gradients in fp32 may be off, relative to the largest entry; steep objectives need more."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "objective" in metafunc.fixturenames:
            assert self.objectives, f"{type(self).__name__} names no objectives"
            metafunc.parametrize("objective", self.objectives, ids=[o.slug() for o in self.objectives])

    # --- as a section of a sweep file ---

    def test_is_found_by_its_name(self, objective: AnyObjective) -> None:
        cls = type(objective)
        assert name_of(cls) == objective.type
        assert known().get(objective.type) is cls, "it is no entry point of an installed package"
        assert build(objective.type, **_params(objective)) == objective

    def test_survives_json_and_pickle(self, objective: AnyObjective) -> None:
        """And its copies count as the same objective: the sweep runs each once."""
        for copy in (
            type(objective).model_validate_json(objective.model_dump_json()),
            # what was just pickled
            pickle.loads(pickle.dumps(objective)),  # nosec B301
        ):
            assert copy == objective
            assert hash(copy) == hash(objective)

    def test_refuses_what_is_no_parameter_or_no_value(self, objective: AnyObjective) -> None:
        """In words that name the key, so that a sweep file can be mended."""
        wrong = [(name, value) for name in objective.parameters() for value in ({"a": "mapping"}, math.nan, math.inf)]
        for name, value in [("no_such_parameter", 1), *wrong]:
            told = _refusal(objective, name, value)
            assert told, f"{name} = {value} is taken"
            assert name in told.removeprefix(f"objective '{objective.type}'"), f"{name} = {value} is not named: {told}"

    def test_has_a_label_and_a_name_for_a_folder(self, objective: AnyObjective) -> None:
        for interval in INTERVALS:
            narrowed = on_interval(objective, **interval)
            assert narrowed.label().strip()
            slug = narrowed.slug()
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", slug), f"unsafe as a folder's name: {slug!r}"

    def test_names_tell_objectives_apart(self) -> None:
        for names in ([o.slug() for o in self.objectives], [o.label() for o in self.objectives]):
            assert len(set(names)) == len(names), f"two objectives share a name: {names}"

    def test_every_step_of_the_training_has_its_objective(self, objective: AnyObjective) -> None:
        """`at` keeps class and interval, and what it gives needs nothing further."""
        narrowed = on_interval(objective, threshold=0.1, upper=0.9)
        for progress in (0.0, 0.5, 0.999):
            step = narrowed.at(progress, torch.tensor([0.5, 1.0, 3.0]))
            assert type(step) is type(objective)
            assert not step.needs_sample_nll
            assert (step.threshold, step.upper, step.keep) == (0.1, 0.9, "above")

    # --- the formula ---

    @given(values=st.lists(logps, min_size=1, max_size=20), v=st.integers(2, 12), seed=st.integers(0, 2**31))
    @thorough
    def test_gradient_is_that_of_the_loss(
        self, objective: AnyObjective, values: list[float], v: int, seed: int
    ) -> None:
        objective = resolved(objective)
        if isinstance(objective, Objective):
            _check_slope(objective, torch.tensor(values, dtype=torch.float64))
        else:
            _check_token_gradient(objective, random_rows(len(values), v, seed, scale=3.0))

    @given(values=st.lists(logps, min_size=1, max_size=20))
    @example(values=[-1e-30, -1e-8, -1e-4, -1.0, -30.0])  # whatever else is drawn, p that rounds to 1
    @thorough
    def test_keeps_its_digits_in_fp32(self, objective: AnyObjective, values: list[float]) -> None:
        """The same at every p as in float64: what is 1 - p must not be made of a p that has been rounded."""
        objective = resolved(objective)
        wide = torch.tensor(values).double()  # values that fp32 has
        if isinstance(objective, Objective):
            for method in (objective.loss, objective.weight):
                _close_in_fp32(method(wide.float()), method(wide), self.fp32_tolerance)
        else:
            logits = torch.stack([wide, torch.zeros_like(wide), wide / 2], dim=1)
            for label in (0, 1):  # from certain to hopeless, and from even to certain
                rows = Rows(logits, torch.full((len(wide),), label), logits.flip(1))
                for over_rows in (objective.token_loss, objective.token_gradient):
                    _close_in_fp32(over_rows(_rows_to(rows, torch.float32)), over_rows(rows), self.fp32_tolerance)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_finite_at_both_ends(self, objective: AnyObjective, dtype: torch.dtype) -> None:
        objective = resolved(objective)
        smallest = torch.finfo(dtype).smallest_normal
        found: Iterable[torch.Tensor]
        if isinstance(objective, Objective):
            ends = [0.0, -smallest / 4, -smallest, -1e-30, -1e-8, -1e-3, -1.0, -30.0, -1e2, -1e4, -1e6]
            logp = torch.tensor(ends * 4, dtype=dtype)  # long enough for vectorised code
            before = logp.clone()
            found = objective.loss(logp), objective.weight(logp)
            assert torch.equal(logp, before), "it changes the tensor that it is given"
            assert all(t.shape == logp.shape for t in found)
        else:
            logits = torch.tensor(EXTREME, dtype=dtype)
            rows = Rows(logits, torch.zeros(len(logits), dtype=torch.long), logits.flip(1))
            found = objective.token_loss(rows), objective.token_gradient(rows)
            assert torch.equal(rows.logits, torch.tensor(EXTREME, dtype=dtype)), "it changes the logits it is given"
            assert [t.shape for t in found] == [logits.shape[:1], logits.shape]
        for t in found:
            assert t.dtype == dtype
            assert t.isfinite().all(), t

    # --- through the head ---

    @given(case=cases, interval=intervals, chunk_rows=chunks, tile=tiles)
    @thorough
    def test_head_equals_full_logits_and_autograd(
        self, objective: AnyObjective, case: Case, interval: dict[str, Any], chunk_rows: int, tile: int
    ) -> None:
        objective = on_interval(resolved(objective), **interval)
        expected = run(naive_objective, case, objective)
        assume(clear_of_edges(objective, expected["logp"][case.supervised], 1e-9))
        with tiles_of(tile):
            found = run(linear_objective, case, objective, chunk_rows=chunk_rows)
        assert found["loss"].dtype == found["logp"].dtype == torch.float64
        assert (found["logp"] <= 0).all()
        assert_close(found, expected, 1e-9)

    @given(case=cases, interval=intervals, chunk_rows=chunks, tile=tiles)
    @thorough
    def test_head_in_fp32_is_close_to_float64(
        self, objective: AnyObjective, case: Case, interval: dict[str, Any], chunk_rows: int, tile: int
    ) -> None:
        objective = on_interval(resolved(objective), **interval)
        case = case.to(torch.float32)
        expected = run(naive_objective, case.to(torch.float64), objective)
        assume(clear_of_edges(objective, expected["logp"][case.supervised], 1e-4))
        with tiles_of(tile):
            found = run(linear_objective, case, objective, chunk_rows=chunk_rows)
        assert (found["logp"] <= 0).all()
        assert_close(found, expected, self.fp32_tolerance)

    @pytest.mark.parametrize("tile", [1, 2, 5])
    def test_head_is_finite_on_extreme_logits(self, objective: AnyObjective, tile: int) -> None:
        logits = torch.tensor(EXTREME)
        labels = torch.zeros(len(logits), dtype=torch.long)
        hidden = torch.eye(len(logits))  # so that the logits stand as they are in the weight
        reference = Reference(hidden, logits.flip(1).T.contiguous())
        case = Case(hidden, logits.T.contiguous(), labels, None, reference)
        for interval in INTERVALS:
            with tiles_of(tile):
                found = run(linear_objective, case, on_interval(resolved(objective), **interval), chunk_rows=3)
            assert (found["logp"] <= 0).all()
            for name, value in found.items():
                assert value.isfinite().all(), f"{name}: {value}"

    @pytest.mark.parametrize(("n", "ignored"), [(0, 0.0), (5, 1.0)])
    def test_head_without_labels_gives_zeros(self, objective: AnyObjective, n: int, ignored: float) -> None:
        found = run(linear_objective, make_case(n, ignored=ignored), resolved(objective))
        assert found["logp"].shape == (n,)
        assert found["grad_hidden"].shape == (n, 4)
        for name, value in found.items():
            assert (value == 0).all(), f"{name}: {value}"

    def test_a_vocabulary_of_one_teaches_nothing(self, objective: AnyObjective) -> None:
        found = run(linear_objective, make_case(v=1), resolved(objective))
        assert found["loss"].isfinite()
        for name in ("logp", "grad_hidden", "grad_weight", "grad_bias"):
            assert (found[name] == 0).all(), f"{name}: {found[name]}"

    @given(case=cases, interval=intervals, filler=st.sampled_from([1e30, math.inf, math.nan]), extra=st.integers(1, 5))
    @thorough
    def test_ignored_rows_change_no_bit(
        self, objective: AnyObjective, case: Case, interval: dict[str, Any], filler: float, extra: int
    ) -> None:
        objective = on_interval(resolved(objective), **interval)
        n = len(case.labels)
        plain = run(linear_objective, case, objective)
        padded = run(linear_objective, _padded(case, extra, filler), objective)
        for name, value in plain.items():
            by_row = name in ("logp", "grad_hidden")
            assert torch.equal(padded[name][:n] if by_row else padded[name], value), name
            assert not by_row or (padded[name][n:] == 0).all(), name

    @given(case=cases, chunk_rows=chunks, seed=st.integers(0, 2**31))
    @thorough
    def test_neither_chunks_nor_the_order_of_rows_matter(
        self, objective: AnyObjective, case: Case, chunk_rows: int, seed: int
    ) -> None:
        """So no token's loss may depend on the other tokens."""
        objective = resolved(objective)
        order = torch.randperm(len(case.labels), generator=torch.Generator().manual_seed(seed))
        plain = run(linear_objective, case, objective)
        mixed = run(linear_objective, case.rows(order), objective, chunk_rows=chunk_rows)
        expected = {k: v[order] if k in ("logp", "grad_hidden") else v for k, v in plain.items()}
        assert_close(mixed, expected, 1e-12)

    @given(seed=st.integers(0, 2**31), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), chunk_rows=chunks)
    @thorough
    def test_tokens_outside_an_interval_count_for_nothing(
        self, objective: AnyObjective, seed: int, shares: tuple[float, float], chunk_rows: int
    ) -> None:
        """Those inside count as they do with no interval."""
        whole = resolved(objective)
        case = make_case(10, seed=seed, ignored=0.1)
        p = run(linear_objective, case, whole)["logp"].exp()
        edges = [float(e) for e in p[case.supervised].quantile(torch.tensor(sorted(shares)).double())]
        for interval, inside in (
            ({"threshold": edges[0]}, p > edges[0]),
            ({"threshold": edges[1], "keep": "below"}, p < edges[1]),
            ({"threshold": edges[0], "upper": edges[1]}, (p > edges[0]) & (p < edges[1])),
            ({"threshold": 1.0}, torch.zeros_like(p, dtype=torch.bool)),  # nothing at all is kept
        ):
            narrowed = on_interval(whole, **interval)
            assume(clear_of_edges(narrowed, p[case.supervised].log(), 1e-9))
            inside &= case.supervised
            found = run(linear_objective, case, narrowed, chunk_rows=chunk_rows)
            assert found["kept"] == inside.sum()
            assert found["supervised"] == case.supervised.sum()
            assert (found["grad_hidden"][~inside] == 0).all()
            expected = run(linear_objective, case.rows(inside), whole)
            for name in ("loss", "grad_weight", "grad_bias"):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(found["grad_hidden"][inside], expected["grad_hidden"], rtol=1e-11, atol=1e-12)
            if isinstance(narrowed, Objective):
                logp = p.log()
                assert (narrowed.loss(logp)[case.supervised & ~inside] == 0).all()
                assert (narrowed.weight(logp)[case.supervised & ~inside] == 0).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_broken_row_is_never_a_silent_zero(self, objective: AnyObjective, bad: float) -> None:
        """NaN or infinity in a row must make the loss NaN, on whichever side of a threshold it would seem to be."""
        case = make_case(6, ignored=0)
        case.hidden[2, 1] = bad
        for interval in INTERVALS:
            for label in range(9):
                case.labels[2] = label
                loss = run(linear_objective, case, on_interval(resolved(objective), **interval), chunk_rows=4)["loss"]
                assert loss.isnan(), f"{loss} with label {label} and {interval}"


# --- how it is checked ------------------------------------------------------------------------------------------------


def _params(objective: AnyObjective) -> dict[str, Any]:
    return {name: value for name, value in objective.model_dump().items() if name != "type"}


def _refusal(objective: AnyObjective, name: str, value: Any) -> str:
    """What `build` says to the objective with another value of one parameter; nothing if it takes that."""
    try:
        build(objective.type, **(_params(objective) | {name: value}))
    except InputError as refusal:
        return str(refusal)
    return ""


def _check_slope(objective: Objective, logp: torch.Tensor) -> None:
    """s against -d f / d log p. Autograd loses digits of its own, and all of them where 0 meets infinity at p = 1."""
    leaf = logp.clone().requires_grad_()
    value = objective.f(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    held = (gradient == 0) & (objective.f(logp * (1 + 1e-6)) == value)
    judged = gradient.isfinite() & ~held
    torch.testing.assert_close(objective.s(logp)[judged], -gradient[judged], rtol=1e-9, atol=1e-14)


def _check_token_gradient(objective: DistributionObjective, rows: Rows) -> None:
    leaf = rows.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.token_loss(Rows(leaf, rows.labels, rows.reference)).sum(), leaf)
    torch.testing.assert_close(objective.token_gradient(rows), gradient, rtol=1e-9, atol=1e-12)


def _close_in_fp32(found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance / 100)


def _rows_to(rows: Rows, dtype: torch.dtype) -> Rows:
    return Rows(rows.logits.to(dtype), rows.labels, None if rows.reference is None else rows.reference.to(dtype))


def _padded(case: Case, extra: int, filler: float) -> Case:
    """The case with ignored rows of this value appended."""

    def more(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows.new_full((extra, rows.shape[1]), filler)])

    labels = torch.cat([case.labels, case.labels.new_full((extra,), IGNORE_INDEX)])
    reference = case.reference._replace(hidden=more(case.reference.hidden))
    return replace(case, hidden=more(case.hidden), labels=labels, reference=reference)
