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

from raysft.config import Range, SearchConfig, SpaceConfig, TrialConfig
from raysft.probe import Capability
from raysft.sweep.ledger import Ledger
from raysft.trial import resolve_threshold

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
        """Ask Optuna for what this trial needs; OptunaSearch collects the answers."""
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
        return value is not None and dimension.low <= value <= dimension.high
    return value in (dimension if isinstance(dimension, list) else [dimension])


class SpreadTPE(optuna.samplers.TPESampler):
    """TPE whose first draws are spread evenly instead of at random, which with few trials leaves wide gaps.

    The k-th trial's value of each parameter is the fraction of start + k / phi: the golden-ratio sequence, whose every
    prefix covers the interval nearly evenly. The start depends on the seed and the parameter's name.
    drawn: trials that were drawn before this sampler was made.
    """

    def __init__(self, seed: int, startup: int, drawn: int = 0) -> None:
        # Parameters that occur together are modelled jointly, so that a threshold's value is learned only from trials
        # that had one; trials in flight count as bad, so that several at once spread out.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                seed=_reseeded(seed, drawn), multivariate=True, group=True, constant_liar=True, n_startup_trials=startup
            )
        self.seed, self.startup, self.drawn = seed, startup, drawn
        self.order: dict[int, int] = {}  # trial number -> how many were drawn before it

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        turn = self.order.setdefault(trial.number, self.drawn + len(self.order))
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


def _reseeded(seed: int, drawn: int) -> int:
    """A seed for what is drawn after the first `drawn` trials, so that a resume does not draw the same again."""
    return seed if drawn == 0 else zlib.crc32(f"{seed} {drawn}".encode())


def sampler(search: SearchConfig, drawn: int) -> optuna.samplers.BaseSampler:
    """drawn: searched trials that began before an interruption."""
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=_reseeded(search.seed, drawn))
    return SpreadTPE(search.seed, startup=STARTUP_TRIALS, drawn=drawn)


class StudySearch(OptunaSearch):
    """OptunaSearch that goes by the ledger: first the trials that were interrupted, then what is left of the given
    ones, then searched ones, each entered into the ledger as it begins.

    Given trials need not lie in the space; the sampler learns from those that do, and from what had ended before. A
    trial that was stopped before its last step is told to Optuna as pruned, so that values of different budgets are
    never mixed; a failed one as failed.
    """

    def __init__(
        self, space: Space, given: list[TrialConfig], search: SearchConfig, capability: Capability, ledger: Ledger
    ) -> None:
        rows = ledger.rows()
        drawn = max(0, len(rows) - len(given))
        super().__init__(space=space, metric=search.metric, mode=search.mode, sampler=sampler(search, drawn))
        self.space, self.capability, self.ledger = space, capability, ledger
        self.due = [row for row in rows if not row.ended]
        self.waiting = given[len(rows) :]
        self.told: dict[str, tuple[TrialConfig, dict[int, float]]] = {}  # of trials that Optuna was not asked for
        for row in rows:
            if row.ended:
                recorded = ledger.values(row.trial_id, self.metric).items()
                values = {step: value for step, (_, value) in recorded if value == value}
                whole = row.status == "FINISHED" and row.step in values
                self._learn_from(row.trial, values, whole)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """trial_id: Tune's, which lives only as long as the process; the ledger's is in the answer."""
        if self.due:
            row = self.due.pop(0)
            self.ledger.begin_again(row.trial_id)
            self.told[trial_id] = row.trial, {}
            return _params(row.trial_id, row.trial)
        if self.waiting:
            trial = self.waiting.pop(0)
            self.told[trial_id] = trial, {}
        else:
            trial = self.space.trial(super().suggest(trial_id) or {})
        trial = resolve_threshold(trial, self.capability)
        return _params(self.ledger.begin(trial), trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value = result.get(self.metric)
        if value is None or value != value:
            return
        if trial_id in self.told:
            self.told[trial_id][1][int(result["step"])] = float(value)
        else:
            super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result["step"]})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        value = (result or {}).get(self.metric)
        whole = bool(result and result.get("finished")) and value is not None and value == value
        if trial_id not in self.told:
            super().on_trial_complete(trial_id, result if whole else None, error or not result)
        elif not error:
            trial, values = self.told[trial_id]
            if whole:
                values[int(result["step"])] = float(value)  # type: ignore[index, arg-type]
            self._learn_from(trial, values, whole)

    def _learn_from(self, trial: TrialConfig, values: dict[int, float], whole: bool) -> None:
        """values: step -> metric, of which the last counts."""
        params, distributions = self.space.locate(trial, self.capability)
        if params and values:
            state = optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.PRUNED
            told = optuna.trial.create_trial(
                state=state,
                value=values[max(values)],
                params=params,
                distributions=distributions,
                intermediate_values=values,
            )
            self._ot_study.add_trial(told)  # type: ignore[attr-defined]


def _params(trial_id: str, trial: TrialConfig) -> dict[str, Any]:
    """What Tune hands to the trial's function."""
    return {"trial_id": trial_id, "trial": trial.model_dump(mode="json")}
