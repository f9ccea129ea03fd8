"""Which objective to try first, before any trial: from a backbone's capability and what studies have found before.

Each known study is a curve: the score of an objective relative to the best of that study. A study counts the more, the
closer its capability is to the one at hand, and the objectives are ranked by the mean of what the curves say. So the
advice between two ends of the continuum is what loses little at either. The paper's studies are evidence like others,
with less weight. Imports neither torch nor ray nor mlflow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from raysft import paper
from raysft.capability import Capability, resolve_threshold
from raysft.config import METRIC_MODES, SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.objectives.auto import Auto

EXPONENTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 10.0)
THRESHOLDED = Power(exponent=0, threshold=0.2)
CANDIDATES = (*(Power(exponent=a) for a in EXPONENTS), THRESHOLDED)

WIDTH = 1.0  # of the kernel, in logits of capability: .5 and .73 lie one apart
PAPER_WEIGHT = 0.25  # of a study of the paper, where one of your own counts 1
PROMISING = 0.1  # of relative score: how far behind the first an objective may be expected
PATH = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.75, 0.8, 0.85, 0.9, 0.95)  # capabilities that `follow` goes by

Regime = Literal["strong", "intermediate", "weak"]
Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Evidence:
    """A finished study. scores: exponent -> score, the higher the better; thresholded: of -log p where p >= .2.

    capability: token mean of p; weight: 1 for one of the user's own.
    """

    name: str
    capability: float
    scores: Mapping[float, float]
    thresholded: float | None = None
    weight: float = 1.0


def _of_paper(measured: paper.Measured) -> Evidence:
    """At the weak end its best exponent is .1, for which its tables have no score: it then had that of -log p."""
    weak = measured.capability <= paper.WEAK
    scores = {**measured.scores, paper.WEAK_BEST: measured.scores[0]} if weak else measured.scores
    name = f"{measured.backbone}, {measured.domain} ({paper.CITATION})"
    return Evidence(name, measured.capability, scores, measured.thresholded, PAPER_WEIGHT)


PAPER = tuple(map(_of_paper, paper.MEASURED))


@dataclass(frozen=True)
class Choice:
    """expected: of the best objective's score, the share that this one should reach; spread: of what studies say."""

    exponent: float
    threshold: float | None
    expected: float
    spread: float

    @property
    def objective(self) -> Power:
        return Power(exponent=self.exponent, threshold=self.threshold)


@dataclass(frozen=True)
class Advice:
    """choices: best first; own: weight of the user's studies near this capability, 1 being one of just the same;

    studies: the names of the nearest; path: capability -> exponent, for an exponent that follows the training.
    """

    capability: float
    regime: Regime
    choices: list[Choice]
    confidence: Confidence
    own: float
    studies: list[str]
    path: list[tuple[float, float]]

    @property
    def exponent(self) -> float:
        """The best one without a threshold."""
        return next(choice.exponent for choice in self.choices if choice.threshold is None)

    def promising(self) -> list[Power]:
        """What should lose little against the first, best first."""
        return [c.objective for c in self.choices if c.expected >= self.choices[0].expected - PROMISING]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        choices = [Choice(**choice) for choice in read.pop("choices")]
        path = [(capability, exponent) for capability, exponent in read.pop("path")]
        return cls(choices=choices, path=path, **read)


def advise(capability: Capability, evidence: Sequence[Evidence] = ()) -> Advice:
    """evidence: studies of the user's own; what cannot tell objectives apart is left out. Without any: the paper's."""
    own = [study for study in evidence if max(study.scores.values(), default=0) > 0 and len(study.scores) > 1]
    known = [*own, *PAPER]
    p = capability.mean_probability
    choices = _ranked(p, known)
    near = sorted(own, key=lambda study: -_closeness(p, study))
    weight = sum(_closeness(p, study) for study in own)
    return Advice(
        capability=p,
        regime=regime(capability),
        choices=choices,
        confidence=_confidence(weight, choices[0]),
        own=weight,
        studies=[study.name for study in near[:3]],
        path=[(level, _ranked_exponents(level, known)) for level in PATH],
    )


def regime(capability: Capability) -> Regime:
    """Where on the paper's continuum: strong by its Assumption 6.1 or a mean near .8, weak up to .1."""
    mean = capability.mean_probability
    if capability.share_above >= paper.STRONG_SHARE or mean >= STRONG_FROM:
        return "strong"
    return "weak" if mean <= paper.WEAK else "intermediate"


STRONG_FROM = 0.7


def relative(study: Evidence, exponent: float, threshold: float | None) -> float:
    """What share of its best score a study had, or would have had, with an objective.

    Between two exponents the curve leaves the better one flat and falls to the other with the square of the distance;
    beyond the first and last it stays as it is. A threshold that was not tried is taken to do as -p does there: both
    learn from likely tokens.
    """
    best = max([*study.scores.values(), study.thresholded or 0])
    if threshold is not None:
        return (study.thresholded if study.thresholded is not None else _on_curve(study.scores, 1.0)) / best
    return _on_curve(study.scores, exponent) / best


def _on_curve(scores: Mapping[float, float], exponent: float) -> float:
    known = sorted(scores)
    if exponent <= known[0]:
        return scores[known[0]]
    if exponent >= known[-1]:
        return scores[known[-1]]
    right = next(i for i, a in enumerate(known) if a >= exponent)
    low, high = known[right - 1], known[right]
    share = (_axis(exponent) - _axis(low)) / (_axis(high) - _axis(low))
    better, worse, away = (low, high, share) if scores[low] >= scores[high] else (high, low, 1 - share)
    return scores[better] - (scores[better] - scores[worse]) * away**2


def _axis(exponent: float) -> float:
    """0 -> 0, 1 -> 1/2, infinity -> 1."""
    return exponent / (1 + exponent) if exponent >= 0 else exponent


def _closeness(capability: float, study: Evidence) -> float:
    apart = (_logit(capability) - _logit(study.capability)) / WIDTH
    return study.weight * math.exp(-apart * apart / 2)


def _logit(p: float) -> float:
    p = min(max(p, 0.005), 0.995)
    return math.log(p / (1 - p))


def _ranked(capability: float, known: Sequence[Evidence]) -> list[Choice]:
    choices = [_choice(capability, known, objective) for objective in CANDIDATES]
    return sorted(choices, key=lambda choice: -choice.expected)


def _ranked_exponents(capability: float, known: Sequence[Evidence]) -> float:
    return next(choice.exponent for choice in _ranked(capability, known) if choice.threshold is None)


def _choice(capability: float, known: Sequence[Evidence], objective: Power) -> Choice:
    weights = [_closeness(capability, study) for study in known]
    said = [relative(study, objective.exponent, objective.threshold) for study in known]
    total = sum(weights)
    mean = sum(w * value for w, value in zip(weights, said, strict=True)) / total
    variance = sum(w * (value - mean) ** 2 for w, value in zip(weights, said, strict=True)) / total
    return Choice(objective.exponent, objective.threshold, mean, math.sqrt(variance))


def resolve(trial: TrialConfig, capability: Capability, advice: Advice | None) -> TrialConfig:
    """The trial with all filled in that follows from the probe: quantiles of p, and the exponent of `auto`."""
    objective = trial.objective
    if isinstance(objective, Auto):
        assert advice is not None, "auto needs an advice"
        advised = objective.with_advice(capability.mean_probability, advice.exponent, tuple(advice.path))
        trial = trial.model_copy(update={"objective": advised})
    return resolve_threshold(trial, capability)


def asks_advice(config: SweepConfig, given: Sequence[TrialConfig]) -> bool:
    """Whether anything in a study goes by an advice. It is about accuracy, so that no other search begins by it."""
    about_accuracy = config.search.metric not in METRIC_MODES or config.search.metric == "eval/accuracy"
    draws = config.search.sampler != "grid" and config.search.trials != 0
    begins = config.search.advice and draws and about_accuracy
    searched = any(family.type == "auto" for family in config.space.objectives)
    return begins or searched or any(isinstance(trial.objective, Auto) for trial in given)


def _confidence(own: float, first: Choice) -> Confidence:
    if own >= 3 and first.spread <= 0.1:
        return "high"
    return "medium" if own >= 1 and first.spread <= 0.2 else "low"
