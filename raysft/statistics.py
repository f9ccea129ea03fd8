"""How sure a difference between two objectives is, from the scores of their trials on the same problems."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]  # [seeds, problems], each the mean over a problem's samples

REPLICATES = 20_000


@dataclass(frozen=True)
class Comparison:
    """The first's mean score minus the second's, in the scores' unit.

    low, high: the interval at `level`; without bounds where a single score gives no idea of the noise. p_value: of no
    difference, two-sided. seeds: that both were trained with; with one, the interval knows nothing of other seeds.
    """

    difference: float
    low: float
    high: float
    p_value: float
    level: float
    seeds: int
    problems: int

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def paired(first: Sequence[Scores], second: Sequence[Scores], level: float = 0.95) -> Comparison:
    """Compare by the unweighted mean over tasks (one element of the sequences each) of the mean score.

    A bootstrap over the problems, paired, of the means over seeds; and to each replicate the noise of the seeds, as
    Student's t with seeds - 1 degrees of freedom. Resampling the seeds as well would be far too sure of itself with the
    few that anyone trains: at three, its 95 % interval held the truth in 79 % of simulated studies, this one in 95 %.

    Raises ValueError unless both have the same tasks, seeds and problems.
    """
    if [s.shape for s in first] != [s.shape for s in second] or not first or any(s.size == 0 for s in first):
        raise ValueError("compare scores of the same tasks, seeds and problems")
    if len(seeds := {s.shape[0] for s in first}) > 1:
        raise ValueError("every task has the same seeds")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    rng = np.random.default_rng(0)
    replicates = np.mean([_over_problems(d.mean(0), rng) for d in differences], axis=0)
    replicates += _noise_of_seeds(np.mean([d.mean(1) for d in differences], axis=0), rng)
    difference = float(np.mean([d.mean() for d in differences]))
    shape = (seeds.pop(), sum(d.shape[1] for d in differences))
    if shape == (1, 1):
        return Comparison(difference, -math.inf, math.inf, 1.0, level, *shape)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2]).tolist()
    side = min(np.sum(replicates <= 0), np.sum(replicates >= 0))
    p_value = min(1.0, 2 * float(side + 1) / (REPLICATES + 1))
    return Comparison(difference, low, high, p_value, level, *shape)


def _over_problems(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of the scores [problems] of problems drawn with replacement: [REPLICATES]."""
    count = len(scores)
    values, of = np.unique(scores, return_counts=True)  # few samples of few outcomes: far fewer values than problems
    return rng.multinomial(count, of / count, REPLICATES) @ values / count


def _noise_of_seeds(means: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64] | float:
    """means: of each seed."""
    seeds = len(means)
    if seeds == 1:
        return 0.0
    error = means.std(ddof=1) / math.sqrt(seeds)
    return np.asarray(error * rng.standard_t(seeds - 1, REPLICATES))
