"""The suite over every built-in objective; and that each of its tests finds what it is there to find."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, Self

import pytest
import torch
from pydantic import ConfigDict, Field

from raysft.objectives import DistributionObjective, Objective, Selection, conformance, known, registry
from raysft.objectives.base import Rows
from raysft.objectives.conformance import ObjectiveConformance
from raysft.objectives.registry import BUILT_IN, name_of

# Parameters beside the defaults, with which every objective is tried.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "power": [
        {"exponent": -0.5},
        {"exponent": 1e-6},
        {"exponent": 0.5},
        {"exponent": 1.0},
        {"exponent": 10.0},
        {"exponent": 0.0, "final_exponent": 2.0},
        {"exponent": 2.0, "final_exponent": -1.0, "schedule": "cosine"},
    ],
    "auto": [
        {"exponent": 0.25},
        {"exponent": 0.5, "follow": True, "capability": 0.3, "path": [(0.1, 0.0), (0.8, 1.0)]},
    ],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 5.0}],
    "huber": [{"delta": 1.0}, {"delta": 0.01}],
    "talr": [{"temperature": 0.5}, {"temperature": 3.0, "floor": 0.0}],
    "infosft": [{"ceiling": 0.6}],
    "eaft": [{"alpha": 0.0}, {"alpha": 0.5}, {"alpha": 3.0, "top_k": 2}],
    "gem": [{"beta": 1.0}, {"beta": 0.1}, {"link": "logsigmoid"}],
    "label_smoothing": [{"epsilon": 0.0}, {"epsilon": 0.5}],
    "asft": [{"kl_weight": 0.0}, {"kl_weight": 3.0}],
}
BUILT_IN_NAMES = [name_of(cls) for cls in BUILT_IN]


def tried(name: str) -> list[dict[str, Any]]:
    """auto has a formula only once its exponent is filled in."""
    return VARIANTS[name] if name == "auto" else [{}, *VARIANTS.get(name, [])]


class TestBuiltIn(ObjectiveConformance):
    objectives = tuple(known()[name](**params) for name in BUILT_IN_NAMES for params in tried(name))


def test_variants_are_of_objectives_that_exist() -> None:
    assert VARIANTS.keys() <= set(BUILT_IN_NAMES)
    assert {type(objective) for objective in TestBuiltIn.objectives} == set(BUILT_IN)


# --- the suite itself -------------------------------------------------------------------------------------------------


class Sound(Objective):
    """As little as an objective can be: (1 - p)/2."""

    type: Literal["mine"] = "mine"
    half: float = 0.5

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return -self.half * logp.expm1()


class SoundRows(DistributionObjective):
    """The same of the whole distribution: -log p and a pull towards even logits."""

    type: Literal["mine"] = "mine"

    def token_loss(self, rows: Rows) -> torch.Tensor:
        return -rows.logp - 0.1 * rows.logprobs.mean(1)


class SlopeOfAnother(Sound):
    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return logp.exp()


class GradientOfAnother(SoundRows):
    def token_gradient(self, rows: Rows) -> torch.Tensor:
        return rows.softmax_minus_onehot()


class Unbounded(Sound):
    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return (-logp).exp()


class UnboundedRows(SoundRows):
    def token_loss(self, rows: Rows) -> torch.Tensor:
        return rows.logits.logsumexp(1).exp()


class Overwriting(Sound):
    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return -self.half * (logp.expm1() if logp.requires_grad else logp.expm1_())


class RoundedP(Sound):
    """1 - p of a p that fp32 has rounded."""

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return -((1 - logp.exp()).clamp(min=1e-12).log())


class RoundedRows(SoundRows):
    def token_loss(self, rows: Rows) -> torch.Tensor:
        return (1 - rows.of_labels(rows.logits.softmax(1))).clamp(min=1e-12).log()


class OfTheBatch(Sound):
    """Divides by what the rows of a chunk have in common."""

    def f(self, logp: torch.Tensor) -> torch.Tensor:
        return -logp / (1 + logp.detach().mean().abs())


class HidesNaN(Sound):
    def loss(self, logp: torch.Tensor) -> torch.Tensor:
        return super().loss(logp).nan_to_num()


class IgnoresTheInterval(Sound):
    def weight(self, logp: torch.Tensor) -> torch.Tensor:
        return self.s(logp)


class KeepsTheRest(Sound):
    def keeps(self, logp: torch.Tensor) -> torch.Tensor:
        return ~super().keeps(logp) if self.threshold else super().keeps(logp)


class DropsTheInterval(Sound):
    def at(
        self, progress: float, sample_nll: torch.Tensor | None = None, mean_probability: float | None = None
    ) -> Self:
        return type(self)(half=progress)  # type: ignore[return-value]


class NeverResolved(Sound):
    @property
    def needs_sample_nll(self) -> bool:
        return True


class UnsafeSlug(Sound):
    def _slug(self) -> str:
        return "../mine"


class NoLabel(Sound):
    def _name(self) -> str:
        return " "


class TakesAnyKey(Sound):
    model_config = ConfigDict(extra="ignore")


class TakesInfinity(Sound):
    half: float = Field(default=0.5, allow_inf_nan=True)


class Forgetful(Sound):
    half: float = Field(default=0.5, exclude=True)


class Unhashable(Sound):
    halves: list[float] = Field(default=[])


class TeachesNothing(Sound):
    """A loss where there is nothing to choose from."""

    def s(self, logp: torch.Tensor) -> torch.Tensor:
        return super().s(logp) + torch.where(logp == 0, torch.inf, 0.0)


class OffsetWithoutRows(SoundRows):
    def token_gradient(self, rows: Rows) -> torch.Tensor:
        return super().token_gradient(rows) + 1.0


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Selection]], None]:
    """Announces a class as `mine`, as its package's entry point would."""

    def announce(cls: type[Selection]) -> None:
        for module in (registry, conformance):
            monkeypatch.setattr(module, "known", lambda: {"mine": cls})

    return announce


def parameters_of(test: str) -> list[dict[str, Any]]:
    """The values with which pytest would call a test of the suite, its objective aside."""
    combinations: list[dict[str, Any]] = [{}]
    for mark in getattr(getattr(ObjectiveConformance, test), "pytestmark", []):
        names, values = mark.args
        names = [names] if isinstance(names, str) else list(names)
        rows = [dict(zip(names, [v] if len(names) == 1 else v, strict=True)) for v in values]
        combinations = [{**one, **row} for one in combinations for row in rows]
    return combinations


def perform(test: str, objective: Any) -> None:
    suite = type("Suite", (ObjectiveConformance,), {"objectives": [objective]})()
    for parameters in parameters_of(test):
        getattr(suite, test)(objective=objective, **parameters)


OF_ONE = sorted(
    name
    for name in vars(ObjectiveConformance)
    if name.startswith("test_") and name != "test_names_tell_objectives_apart"
)


@pytest.mark.parametrize("test", OF_ONE)
@pytest.mark.parametrize("cls", [Sound, SoundRows])
def test_a_sound_objective_passes(test: str, cls: type[Selection], registered: Callable[..., None]) -> None:
    registered(cls)
    perform(test, cls())


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (SlopeOfAnother, "test_gradient_is_that_of_the_loss"),
        (SlopeOfAnother, "test_head_equals_full_logits_and_autograd"),
        (SlopeOfAnother, "test_head_in_fp32_is_close_to_float64"),
        (GradientOfAnother, "test_gradient_is_that_of_the_loss"),
        (GradientOfAnother, "test_head_equals_full_logits_and_autograd"),
        (OffsetWithoutRows, "test_a_vocabulary_of_one_teaches_nothing"),
        (TeachesNothing, "test_a_vocabulary_of_one_teaches_nothing"),
        (Unbounded, "test_is_finite_at_both_ends"),
        (Unbounded, "test_head_is_finite_on_extreme_logits"),
        (UnboundedRows, "test_is_finite_at_both_ends"),
        (UnboundedRows, "test_head_is_finite_on_extreme_logits"),
        (Overwriting, "test_is_finite_at_both_ends"),
        (RoundedP, "test_keeps_its_digits_in_fp32"),
        (RoundedRows, "test_keeps_its_digits_in_fp32"),
        (OfTheBatch, "test_neither_chunks_nor_the_order_of_rows_matter"),
        (HidesNaN, "test_a_broken_row_is_never_a_silent_zero"),
        (IgnoresTheInterval, "test_tokens_outside_an_interval_count_for_nothing"),
        (KeepsTheRest, "test_tokens_outside_an_interval_count_for_nothing"),
        (DropsTheInterval, "test_every_step_of_the_training_has_its_objective"),
        (NeverResolved, "test_every_step_of_the_training_has_its_objective"),
        (UnsafeSlug, "test_has_a_label_and_a_name_for_a_folder"),
        (NoLabel, "test_has_a_label_and_a_name_for_a_folder"),
        (TakesAnyKey, "test_refuses_what_is_no_parameter_or_no_value"),
        (TakesInfinity, "test_refuses_what_is_no_parameter_or_no_value"),
    ],
)
def test_a_flaw_is_found(cls: type[Selection], test: str, registered: Callable[..., None]) -> None:
    registered(cls)
    with pytest.raises(AssertionError):
        perform(test, cls())


def test_lost_parameters_are_found(registered: Callable[..., None]) -> None:
    registered(Forgetful)
    for test in ("test_is_found_by_its_name", "test_survives_json_and_pickle"):
        with pytest.raises(AssertionError):
            perform(test, Forgetful(half=0.3))


def test_what_cannot_be_counted_once_is_found(registered: Callable[..., None]) -> None:
    registered(Unhashable)
    with pytest.raises(TypeError, match="unhashable"):
        perform("test_survives_json_and_pickle", Unhashable())


def test_a_missing_entry_point_is_found() -> None:
    with pytest.raises(AssertionError, match="it is no entry point of an installed package"):
        perform("test_is_found_by_its_name", Sound())


def test_two_objectives_of_one_name_are_found() -> None:
    suite = type("Suite", (ObjectiveConformance,), {"objectives": [Sound(half=0.1), Sound(half=0.2)]})()
    suite.test_names_tell_objectives_apart()
    suite = type("Suite", (ObjectiveConformance,), {"objectives": [UnsafeSlug(half=0.1), UnsafeSlug(half=0.2)]})()
    with pytest.raises(AssertionError, match="two objectives share a name"):
        suite.test_names_tell_objectives_apart()


def test_a_suite_over_nothing_is_refused() -> None:
    metafunc: Any = SimpleNamespace(fixturenames=["objective"])
    with pytest.raises(AssertionError, match="names no objectives"):
        ObjectiveConformance().pytest_generate_tests(metafunc)
