"""The answer of a study: which objective for this backbone, by how much, and whether the data support that.

The search's winner is compared with -log p, then with -p. With a confirm stage it is judged by trials with other seeds
on problems that the search never saw, at 95 %; the order is fixed beforehand, and the second comparison claims
something only where the first does, so that the two together err in one of twenty studies. Without one, the winner was
picked on the very problems that it is judged on: the level is then raised by the number of trials that it was picked
from (Bonferroni), and nothing is known of other seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raysft.objectives import Power, Selection
from raysft.results import Scores, Study, Trial, scores
from raysft.statistics import Comparison, paired

LEVEL = 0.95
RIVALS = (Power(exponent=0), Power(exponent=1))  # in the order in which they are compared

Read = Callable[[Study, Trial], dict[str, Scores]]
Status = Literal["confirmed", "provisional", "undecided", "overturned", "none"]


@dataclass(frozen=True)
class Candidate:
    """An objective at a learning rate, and its trials that are compared: one a seed. mean: of the metric over them."""

    label: str
    objective: Selection | None
    learning_rate: float
    trials: list[Trial]
    mean: float


@dataclass(frozen=True)
class Verdict:
    """status: confirmed; provisional: it would be, but there was no confirm stage; undecided: the winner cannot be told
    from -log p or from -p; overturned: one of them is better than the winner; none: nothing to compare.

    recommended: of the objective; where the data do not decide, the best so far. gains: what was compared with the
    winner -> how much better the winner is, of a metric that falls how much lower.
    """

    status: Status
    sentence: str
    recommended: Candidate | None = None
    winner: Candidate | None = None
    gains: dict[str, Comparison] = field(default_factory=dict)
    confirmed: list[Candidate] = field(default_factory=list)


def judge(study: Study, read: Read = scores) -> Verdict:
    """read: how a trial's scores are read."""
    best = next(iter(study.compared()), None)
    if best is None:
        return Verdict("none", f"{study.backbone}: no trial has finished with {study.metric}: there is no answer.")
    anew = _candidates(study, [t for t in study.trials if t.role == "confirm" and study.value(t) is not None])
    winner = next((c for c in anew if _same(c, best)), None)
    if winner is None:  # no confirm stage, or its trials of the winner failed
        seen = _candidates(study, study.compared())
        winner = next(c for c in seen if _same(c, best))
        level = 1 - (1 - LEVEL) / len(study.compared())
        return _verdict(study, winner, seen, level, read, confirmed=[])
    return _verdict(study, winner, anew, LEVEL, read, confirmed=anew)


def _candidates(study: Study, trials: Sequence[Trial]) -> list[Candidate]:
    groups: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.label, trial.learning_rate), []).append(trial)
    return [
        Candidate(label, of[0].objective, rate, of, float(np.mean([study.value(trial) for trial in of])))
        for (label, rate), of in groups.items()
    ]


def _same(candidate: Candidate, trial: Trial) -> bool:
    return (candidate.label, candidate.learning_rate) == (trial.label, trial.learning_rate)


def _verdict(
    study: Study, winner: Candidate, others: list[Candidate], level: float, read: Read, confirmed: list[Candidate]
) -> Verdict:
    rivals = [found for rival in RIVALS if (found := _rival(rival, winner, others)) is not None]
    gains = {rival.label: _gain(study, winner, rival, level, read) for rival in rivals}
    ahead = [rival for rival in rivals if gains[rival.label].high < 0]
    status: Status
    if ahead:
        status, recommended = "overturned", _better(study, ahead)
    elif rivals and all(gain.low > 0 for gain in gains.values()):
        status, recommended = ("confirmed" if confirmed else "provisional"), winner
    else:
        level_with = [rival for rival in rivals if gains[rival.label].low <= 0]
        status, recommended = "undecided", _better(study, [winner, *level_with])
    sentence = _sentence(study, status, winner, recommended, gains, bool(confirmed))
    return Verdict(status, sentence, recommended, winner, gains, confirmed)


def _rival(objective: Selection, winner: Candidate, others: list[Candidate]) -> Candidate | None:
    """The baseline to compare with; none where it is the winner itself, or has not finished."""
    return next((c for c in others if c.objective == objective and c is not winner), None)


def _better(study: Study, candidates: list[Candidate]) -> Candidate:
    sign = 1 if study.mode == "max" else -1
    return max(candidates, key=lambda candidate: sign * candidate.mean)


def _gain(study: Study, winner: Candidate, rival: Candidate, level: float, read: Read) -> Comparison:
    """Over the seeds that both have, and the problems; without records of these, over seeds alone."""
    pairs = [(a, b) for a in winner.trials for b in rival.trials if a.seed == b.seed]
    pairs = pairs or [(winner.trials[0], rival.trials[0])]
    sign = 1 if study.mode == "max" else -1
    first, second = ([sign * part for part in task_scores(study, [pair[i] for pair in pairs], read)] for i in (0, 1))
    if [s.shape for s in first] != [s.shape for s in second]:
        first, second = ([sign * _values(study, [pair[i] for pair in pairs])] for i in (0, 1))
    return paired(first, second, level)


def task_scores(study: Study, trials: list[Trial], read: Read) -> list[np.ndarray]:
    """Of each task that the metric is made of: [seeds, problems]."""
    found = [read(study, trial) for trial in trials]
    tasks = [name for name in found[0] if study.metric in (f"eval/{name}/accuracy", "eval/accuracy")]
    if study.metric == "eval/accuracy" and "generation" in tasks:  # as `summarised` has it
        tasks = ["generation"]
    same = all(name in other and other[name].problems == found[0][name].problems for name in tasks for other in found)
    if not tasks or not same:
        return [_values(study, trials)]
    return [np.array([of[name].values.mean(1) for of in found]) for name in tasks]


def _values(study: Study, trials: list[Trial]) -> np.ndarray:
    """The metric itself: [seeds, 1]."""
    return np.array([[study.value(trial)] for trial in trials], dtype=float)


# --- in words -------------------------------------------------------------------------------------------------------


def _sentence(
    study: Study,
    status: Status,
    winner: Candidate,
    recommended: Candidate,
    gains: dict[str, Comparison],
    confirmed: bool,
) -> str:
    told = "; ".join(f"{_amount(study, gain)} over {label}" for label, gain in gains.items())
    head = {
        "confirmed": f"use {winner.label}: {told}",
        "provisional": f"{winner.label} leads: {told}",
        "undecided": f"undecided between {_listed(winner, gains)}. {winner.label}, the search's winner: {told}",
        "overturned": f"use {recommended.label}; {winner.label}, the search's winner, did not hold up: {told}",
    }[status]
    if not gains:
        head = f"undecided. Best so far is {winner.label}, with no -log p or -p that finished to compare it with"
    return f"{study.backbone}: {head}. {_basis(study, gains, confirmed)}"


def _listed(winner: Candidate, gains: dict[str, Comparison]) -> str:
    """The winner, and what it cannot be told from."""
    alike = [label for label, gain in gains.items() if gain.low <= 0]
    return " and ".join([winner.label, *alike])


def _amount(study: Study, gain: Comparison) -> str:
    """`+3.1 points [1.0, 5.2]`, or of another metric the number itself."""
    scale, unit, digits = (100, " points", 1) if study.metric.endswith("accuracy") else (1, "", 3)
    difference = f"{scale * gain.difference:+.{digits}f}{unit}"
    if not np.isfinite(gain.low):
        return f"{difference} (no interval: one seed)"
    verdict = "" if gain.significant else ", not significant"
    return f"{difference} [{scale * gain.low:.{digits}f}, {scale * gain.high:.{digits}f}{verdict}]"


def _basis(study: Study, gains: dict[str, Comparison], confirmed: bool) -> str:
    """What the answer rests on."""
    gain = next(iter(gains.values()), None)
    if gain is None:
        return f"By {study.metric}."
    problems = f" and {gain.problems} problems" if gain.problems > 1 else ""
    if confirmed:
        more = (
            ""
            if all(gain.significant for gain in gains.values())
            else " More seeds tell more: raise confirm.seeds, --resume."
        )
        return f"By {study.metric}, {gain.seeds} seed{'s'[: gain.seeds > 1]}{problems} that the search never saw.{more}"
    widened = f" (intervals widened for {len(study.compared())} trials)" if np.isfinite(gain.low) else ""
    seen = f"By {study.metric}, one seed{problems} that the search itself went by{widened}"
    return f"{seen}: confirm it before you rely on it, with confirm: {{seeds: 3}}."
