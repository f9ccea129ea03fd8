"""How sure a value is that a figure or a table shows: its 95 % interval."""

import math
from dataclasses import dataclass

import numpy as np

from raysft.results import Study, Trial, scores
from raysft.statistics import paired
from raysft.verdict import Candidate, task_scores

NORMAL = 1.96  # standard errors that hold 95 %


@dataclass(frozen=True)
class Interval:
    """A value of the study's metric; low and high are the value itself where nothing is known of its error."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return self.high > self.low


def of_trial(study: Study, trial: Trial) -> Interval:
    """From the standard error over problems; of other seeds it knows nothing."""
    value, error = study.value(trial), study.error(trial)
    assert value is not None
    reach = NORMAL * (error or 0.0)
    return Interval(value, value - reach, value + reach)


def of_candidate(study: Study, candidate: Candidate) -> Interval:
    """Of the mean over a candidate's seeds, by the same bootstrap that the verdict rests on."""
    if len(candidate.trials) == 1:
        return of_trial(study, candidate.trials[0])
    parts = task_scores(study, candidate.trials, scores)
    against = paired(parts, [np.zeros_like(part) for part in parts])
    low, high = (edge if math.isfinite(edge) else candidate.mean for edge in (against.low, against.high))
    return Interval(candidate.mean, low, high)
