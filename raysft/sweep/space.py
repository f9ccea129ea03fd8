"""The search space as Optuna sees it, and the samplers over it."""

import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from raysft.capability import Capability
from raysft.config import Range, SearchConfig, SpaceConfig, TrialConfig
from raysft.objectives import Selection

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP_TRIALS = 8
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Space:
    """A define-by-run space with flat keys: objective, exponent, focal.gamma, ..., thresholded, threshold, upper, keep,
    learning_rate.

    Keys with a single value are not Optuna's business; conditional ones are asked for only where they apply.
    """

    config: SpaceConfig
    learning_rate: float
    seed: int

    def __call__(self, trial: Any) -> None:
        """Ask Optuna for what this trial needs; the answers are the trial's params."""
        names = self._objectives()
        name = trial.suggest_categorical("objective", names) if len(names) > 1 else names[0]
        for key, distribution in self._asked(name).items():
            _suggest(trial, key, distribution)
        if self.config.threshold is not None and (
            not self.config.threshold_optional or trial.suggest_categorical("thresholded", [False, True])
        ):
            for key, distribution in self._asked_of_threshold().items():
                _suggest(trial, key, distribution)

    def trial(self, values: Mapping[str, Any]) -> TrialConfig:
        """The trial that Optuna's answers mean."""
        space, name = self.config, values.get("objective", self._objectives()[0])
        objective = {key: values.get(_key(name, key), _fixed(d)) for key, d in space.dimensions(name).items()}
        if space.threshold is not None and values.get("thresholded", not space.threshold_optional):
            objective |= {
                "threshold": values.get("threshold", _fixed(space.threshold)),
                "upper": values.get("upper", _fixed(space.upper)),
                "keep": values.get("keep", space.keep[0]),
                "threshold_unit": space.threshold_unit,
            }
        rate = values.get("learning_rate", _fixed(space.learning_rate)) or self.learning_rate
        return TrialConfig.model_validate(
            {"objective": {"type": name, **objective}, "learning_rate": rate, "seed": self.seed}
        )

    def of(self, objective: Selection, capability: Capability) -> TrialConfig | None:
        """A trial of this objective at the training section's rate; None where that lies outside the space."""
        trial = TrialConfig(objective=objective, learning_rate=self.learning_rate, seed=self.seed)
        located, _ = self.locate(trial, capability)
        return trial if located else None

    def locate(self, trial: TrialConfig, capability: Capability) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Where a given trial lies in the space: Optuna's parameters and distributions; empty where it lies outside."""
        objective, name = trial.objective, trial.objective.type
        if name not in self._objectives():
            return {}, {}
        own = self.config.dimensions(name)
        inside = all(_fits(dimension, getattr(objective, key)) for key, dimension in own.items())
        inside &= _fits(self.config.learning_rate or self.learning_rate, trial.learning_rate)
        values: dict[str, Any] = {_key(name, key): getattr(objective, key) for key in own}
        values |= {"objective": name, "learning_rate": trial.learning_rate}
        asked = self._asked(name)
        if len(self._objectives()) > 1:
            asked["objective"] = CategoricalDistribution(self._objectives())
        if self.config.threshold is None:
            inside &= objective.threshold is None
        elif objective.threshold is None:
            inside &= self.config.threshold_optional
        else:
            values |= {
                "threshold": self._level(objective.threshold, trial.quantile, capability),
                "keep": objective.keep,
            }
            if objective.upper is not None:
                values["upper"] = self._level(objective.upper, trial.upper_quantile, capability)
            asked |= self._asked_of_threshold()
            inside &= _fits(self.config.threshold, values["threshold"]) and objective.keep in self.config.keep
            inside &= _fits(self.config.upper, values.get("upper"))
        if self.config.threshold is not None and self.config.threshold_optional:
            asked["thresholded"] = CategoricalDistribution([False, True])
            values["thresholded"] = objective.threshold is not None
        return ({key: values[key] for key in asked}, asked) if inside else ({}, {})

    def _objectives(self) -> list[str]:
        return [family.type for family in self.config.objectives]

    def _level(self, probability: float, quantile: float | None, capability: Capability) -> float:
        """A threshold in the unit of the space."""
        if self.config.threshold_unit == "probability":
            return probability
        return capability.level(probability) if quantile is None else quantile

    def _asked(self, name: str) -> dict[str, BaseDistribution]:
        own = {_key(name, key): dimension for key, dimension in self.config.dimensions(name).items()}
        return _distributions({**own, "learning_rate": self.config.learning_rate})

    def _asked_of_threshold(self) -> dict[str, BaseDistribution]:
        asked = _distributions({"threshold": self.config.threshold, "upper": self.config.upper})
        if len(self.config.keep) > 1:
            asked["keep"] = CategoricalDistribution(list(self.config.keep))
        return asked


def _key(objective: str, parameter: str) -> str:
    """What Optuna calls a parameter: `exponent`, `focal.gamma`."""
    return parameter if parameter == "exponent" else f"{objective}.{parameter}"


def _distributions(dimensions: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for name, dimension in dimensions.items():
        if isinstance(dimension, Range):
            found[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
        elif isinstance(dimension, list) and len(dimension) > 1:
            found[name] = CategoricalDistribution(dimension)
    return found


def _suggest(trial: Any, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, list(distribution.choices))
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _fixed(dimension: Any) -> Any:
    """The value of a dimension that Optuna is not asked for."""
    return dimension[0] if isinstance(dimension, list) else dimension


def _fits(dimension: Any, value: Any) -> bool:
    if isinstance(dimension, Range):
        return value is not None and dimension.low <= value <= dimension.high and _on_step(dimension, value)
    return value in (dimension if isinstance(dimension, list) else [dimension])


def _on_step(dimension: Range, value: float) -> bool:
    steps = 0.0 if dimension.step is None else (value - dimension.low) / dimension.step
    return abs(steps - round(steps)) < 1e-8


class SpreadTPE(optuna.samplers.TPESampler):
    """TPE whose first draws are spread evenly instead of at random, which with few trials leaves wide gaps.

    The k-th trial's value of each parameter is the fraction of start + k / phi: the golden-ratio sequence, whose every
    prefix covers the interval nearly evenly. The start depends on the seed and the parameter's name.
    One sampler draws one trial; drawn: trials that were drawn before it, so the same whether or not a study was
    interrupted in between.
    """

    def __init__(self, seed: int, startup: int, drawn: int) -> None:
        # Parameters that occur together are modelled jointly, so that a threshold's value is learned only from trials
        # that had one; trials in flight count as bad, so that several at once spread out.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                seed=_reseeded(seed, drawn), multivariate=True, group=True, constant_liar=True, n_startup_trials=startup
            )
        self.seed, self.startup, self.drawn = seed, startup, drawn

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self.drawn >= self.startup:
            return super().sample_independent(study, trial, param_name, param_distribution)
        start = zlib.crc32(f"{self.seed} {param_name}".encode()) / 2**32
        return _at(param_distribution, (start + self.drawn * GOLDEN) % 1.0)


def _at(distribution: BaseDistribution, share: float) -> Any:
    """The value that lies at this share (0 to 1) of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return min(high, max(low, low * (high / low) ** share))
    if distribution.step is None:
        return low + share * (high - low)
    return low + distribution.step * int(share * (round((high - low) / distribution.step) + 1))


def _reseeded(seed: int, drawn: int) -> int:
    """A seed of its own for each trial that is drawn."""
    return seed if drawn == 0 else zlib.crc32(f"{seed} {drawn}".encode())


def sampler(search: SearchConfig, drawn: int) -> optuna.samplers.BaseSampler:
    """For one trial; drawn: searched trials that began before it."""
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=_reseeded(search.seed, drawn))
    return SpreadTPE(search.seed, startup=STARTUP_TRIALS, drawn=drawn)
