"""The search space as Optuna sees it, and Tune's OptunaSearch over it, the baselines first."""

import math
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search.optuna import OptunaSearch

from raysft.config import Dimension, PowerConfig, Range, SearchConfig, SpaceConfig, TrialConfig
from raysft.probe import Capability
from raysft.trial import resolve_threshold

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP_TRIALS = 8
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Space:
    """A define-by-run space with flat keys: exponent, thresholded, threshold, keep, learning_rate.

    Keys with a single value are not Optuna's business; conditional ones are asked for only where they apply.
    """

    config: SpaceConfig
    learning_rate: float
    seed: int

    def __call__(self, trial: Any) -> None:
        """Ask Optuna for what this trial needs; OptunaSearch collects the answers."""
        for name, distribution in self._asked().items():
            _suggest(trial, name, distribution)
        if self.config.threshold is not None and (
            not self.config.threshold_optional or trial.suggest_categorical("thresholded", [False, True])
        ):
            for name, distribution in self._asked_of_threshold().items():
                _suggest(trial, name, distribution)

    def trial(self, values: Mapping[str, Any]) -> TrialConfig:
        """The trial that Optuna's answers mean."""
        space = self.config
        thresholded = space.threshold is not None and values.get("thresholded", not space.threshold_optional)
        threshold = values.get("threshold", _fixed(space.threshold)) if thresholded else None
        objective = PowerConfig(
            exponent=values.get("exponent", _fixed(space.exponent)),
            threshold=threshold,
            keep=values.get("keep", space.keep[0]) if thresholded else "above",
            threshold_unit=space.threshold_unit if thresholded else "probability",
        )
        rate = values.get("learning_rate", _fixed(space.learning_rate)) or self.learning_rate
        return TrialConfig(objective=objective, learning_rate=rate, seed=self.seed)

    def locate(self, trial: TrialConfig, capability: Capability) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Where a given trial lies in the space: Optuna's parameters and distributions; empty where it lies outside."""
        objective = trial.objective
        values: dict[str, Any] = {"exponent": objective.exponent, "learning_rate": trial.learning_rate}
        asked = self._asked()
        if self.config.threshold is None:
            inside = objective.threshold is None
        elif objective.threshold is None:
            inside = self.config.threshold_optional
        else:
            unit_is_quantile = self.config.threshold_unit == "quantile"
            level = capability.level(objective.threshold) if unit_is_quantile else objective.threshold
            values |= {"threshold": level, "keep": objective.keep}
            asked |= self._asked_of_threshold()
            inside = _fits(self.config.threshold, level) and objective.keep in self.config.keep
        if self.config.threshold is not None and self.config.threshold_optional:
            asked["thresholded"] = CategoricalDistribution([False, True])
            values["thresholded"] = objective.threshold is not None
        inside &= _fits(self.config.exponent, objective.exponent)
        inside &= _fits(self.config.learning_rate or self.learning_rate, trial.learning_rate)
        return ({name: values[name] for name in asked}, asked) if inside else ({}, {})

    def _asked(self) -> dict[str, BaseDistribution]:
        return _distributions(exponent=self.config.exponent, learning_rate=self.config.learning_rate)

    def _asked_of_threshold(self) -> dict[str, BaseDistribution]:
        asked = _distributions(threshold=self.config.threshold)
        if len(self.config.keep) > 1:
            asked["keep"] = CategoricalDistribution(list(self.config.keep))
        return asked


def _distributions(**dimensions: Dimension | None) -> dict[str, BaseDistribution]:
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


def _fixed(dimension: Dimension | None) -> Any:
    """The value of a dimension that Optuna is not asked for."""
    return dimension[0] if isinstance(dimension, list) else dimension


def _fits(dimension: Dimension, value: float) -> bool:
    if isinstance(dimension, Range):
        return dimension.low <= value <= dimension.high
    return value in (dimension if isinstance(dimension, list) else [dimension])


class SpreadTPE(optuna.samplers.TPESampler):
    """TPE whose first draws are spread evenly instead of at random, which with few trials leaves wide gaps.

    The k-th trial's value of each parameter is the fraction of start + k / phi: the golden-ratio sequence, whose every
    prefix covers the interval nearly evenly. The start depends on the seed and the parameter's name.
    """

    def __init__(self, seed: int, startup: int) -> None:
        # Parameters that occur together are modelled jointly, so that a threshold's value is learned only from trials
        # that had one; trials in flight count as bad, so that several at once spread out.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup)
        self.seed, self.startup = seed, startup
        self.order: dict[int, int] = {}  # trial number -> how many were drawn before it

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        turn = self.order.setdefault(trial.number, len(self.order))
        if turn >= self.startup:
            return super().sample_independent(study, trial, param_name, param_distribution)
        start = zlib.crc32(f"{self.seed} {param_name}".encode()) / 2**32
        return _at(param_distribution, (start + turn * GOLDEN) % 1.0)


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


def sampler(search: SearchConfig) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=search.seed)
    return SpreadTPE(search.seed, startup=STARTUP_TRIALS)


class StudySearch(OptunaSearch):
    """OptunaSearch with given trials first. They need not lie in the space; those that do, the sampler learns from.

    A trial that was stopped before its last step is told to Optuna as pruned, so that values of different budgets are
    never mixed; a failed one as failed.
    """

    def __init__(self, space: Space, given: list[TrialConfig], search: SearchConfig, capability: Capability) -> None:
        super().__init__(space=space, metric=search.metric, mode=search.mode, sampler=sampler(search))
        self.space, self.capability = space, capability
        self.waiting = list(given)
        self.given: dict[str, TrialConfig] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if trial_id not in self.given and self.waiting:
            self.given[trial_id] = self.waiting.pop(0)
        if trial_id in self.given:
            trial = self.given[trial_id]
        else:
            values = super().suggest(trial_id) or {}
            trial = self.space.trial(values)
        return {"trial": resolve_threshold(trial, self.capability).model_dump(mode="json")}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value = result.get(self.metric)
        if trial_id not in self.given and value is not None and value == value:
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result["step"]})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        value = (result or {}).get(self.metric)
        whole = bool(result and result.get("finished")) and value is not None and value == value
        if trial_id not in self.given:
            super().on_trial_complete(trial_id, result if whole else None, error or not result)
        elif whole and not error:
            self._learn_from(self.given[trial_id], float(value))  # type: ignore[arg-type]

    def _learn_from(self, trial: TrialConfig, value: float) -> None:
        params, distributions = self.space.locate(trial, self.capability)
        if params:
            told = optuna.trial.create_trial(value=value, params=params, distributions=distributions)
            self._ot_study.add_trial(told)  # type: ignore[attr-defined]
