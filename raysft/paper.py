"""The figures of the paper that the search starts from: arXiv 2510.00526 (v3), by backbone and domain.

The one place where they stand; the advice takes them as evidence, the report draws them beside a sweep's own trials.
Capability is the token mean of p (Tables 5 and 6), all scores are in percent.
"""

from dataclasses import dataclass

CITATION = "arXiv 2510.00526"
WEAK = 0.1  # the weak end's capability is .01 to .1; strong is about .8, in between about .5 (Sec. 3)
WEAK_BEST = 0.1  # the exponent that is best at the weak end, of .1 to 10 (Fig. 6); the strong end's is about 1
STRONG_SHARE = 0.7  # Assumption 6.1: a strong model has at least this share of tokens with p >= .55


@dataclass(frozen=True)
class Measured:
    """A backbone on a domain: its capability, its score before training, and the score of each objective.

    share_above: of tokens with p > .55. scores: exponent -> score, 0 being -log p and 1 being -p; thresholded: of
    -log p where p >= .2. None: not in the paper.
    """

    domain: str
    backbone: str
    capability: float
    base: float
    scores: dict[float, float]
    thresholded: float | None = None
    share_above: float | None = None


# Mean of MATH500, Minerva, Olympiad, AIME24 and AMC23, avg@16 at temperature 1.
MATH = (
    Measured("math", "Llama-3.1-8B", 0.80, 0.91, {0: 6.49, 1: 10.56}, 10.33, 0.728),
    Measured("math", "DeepSeekMath-7B", 0.76, 2.49, {0: 11.10, 1: 19.11}, 18.65, 0.767),
    Measured("math", "Qwen2.5-Math-1.5B", 0.80, 14.97, {0: 17.00, 1: 32.75, 10: 31.50}, 32.04, 0.806),
    Measured("math", "Qwen2.5-Math-7B", 0.81, 20.23, {0: 22.67, 1: 36.51}, 38.16, 0.812),
)
# Mean over the medical benchmarks.
MEDICAL = (
    Measured("medical", "Llama-3.2-3B", 0.50, 19.48, {0: 37.99, 1: 36.29}),
    Measured("medical", "Llama-3.1-8B", 0.53, 21.89, {0: 47.23, 1: 45.89}),
    Measured("medical", "Qwen2.5-1.5B", 0.56, 18.59, {0: 35.13, 1: 35.02}),
    Measured("medical", "Qwen2.5-Math-7B", 0.59, 27.55, {0: 33.56, 1: 33.83}),
)
# Exact match.
FIGLET = (
    Measured("figlet font", "Llama-3.2-3B", 0.01, 0, {0: 1.08, 1: 0}),
    Measured("figlet font", "Llama-3.1-8B", 0.01, 0, {0: 1.34, 1: 0}),
    Measured("figlet font", "Qwen2.5-1.5B", 0.01, 0, {0: 0.60, 1: 0}),
    Measured("figlet font", "Qwen2.5-7B", 0.07, 0, {0: 35.20, 1: 0}),
)
MEASURED = MATH + MEDICAL + FIGLET
