"""What each policy loses in each case of the regret benchmark, and the table of it."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from regret_cases import Case
from telling import number, table

from raysft.advisor import Advice, Evidence, advise
from raysft.capability import Capability
from raysft.objectives import Power
from raysft.objectives.auto import Auto

NLL, MINUS_P = Power(exponent=0), Power(exponent=1)


@dataclass
class Study:
    """A case as it was measured: of each objective, by its label, accuracy, standard error and seconds."""

    capability: Capability
    probe_seconds: float
    trials: dict[str, Any]
    follow: dict[str, Any] = field(default_factory=dict)

    def accuracy(self, objective: Power) -> float:
        return float(self.trials[objective.label()]["accuracy"])

    @property
    def best(self) -> float:
        return max(float(trial["accuracy"]) for trial in self.trials.values())

    def seconds(self) -> float:
        return sum(float(trial["seconds"]) for trial in self.trials.values())


Known = Mapping[Case, Study]


def read(path: Path) -> dict[Case, Study]:
    """All cases of a file; a later line adds to an earlier one."""
    found: dict[Case, Study] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        case = Case(**row["case"])
        if "trials" in row:
            found[case] = Study(Capability(**row["capability"]), row["probe_seconds"], row["trials"])
        found[case].follow |= row.get("follow", {})
    return found


def evidence(known: Known, without: str = "") -> list[Evidence]:
    """The cases of all other tasks, as a store of earlier sweeps would hold them."""
    return [_evidence(case, study) for case, study in known.items() if case.task != without]


def _evidence(case: Case, study: Study) -> Evidence:
    scores, thresholded = {}, None
    for trial in study.trials.values():
        if trial["objective"]["threshold"] is None:
            scores[trial["objective"]["exponent"]] = trial["accuracy"]
        else:
            thresholded = trial["accuracy"]
    return Evidence(case.name(), study.capability.mean_probability, scores, thresholded)


def advised(case: Case, known: Known) -> Advice:
    """By the paper and all other tasks."""
    return advise(known[case].capability, evidence(known, without=case.task))


def following(case: Case, known: Known) -> tuple[Auto, ...]:
    """The auto objective with `follow`, as it is filled in for a case."""
    advice = advised(case, known)
    return (Auto(follow=True).with_advice(advice.capability, advice.exponent, tuple(advice.path)),)


# --- policies: the accuracy of what they choose, None where it was not trained ---------------------------------------

Policy = Callable[[Case, Known], float | None]


def _always(objective: Power) -> Policy:
    return lambda case, known: known[case].accuracy(objective)


def _by_paper(case: Case, known: Known) -> float:
    return known[case].accuracy(advise(known[case].capability).choices[0].objective)


def _by_tasks(case: Case, known: Known) -> float:
    return known[case].accuracy(advised(case, known).choices[0].objective)


def _auto(case: Case, known: Known) -> float:
    return known[case].accuracy(Power(exponent=advised(case, known).exponent))


def _auto_follow(case: Case, known: Known) -> float | None:
    found = [float(trial["accuracy"]) for trial in known[case].follow.values()]
    return found[-1] if found else None


def _two_first(case: Case, known: Known) -> float:
    choices = advised(case, known).choices[:2]
    return max(known[case].accuracy(choice.objective) for choice in choices)


POLICIES: dict[str, tuple[Policy, int]] = {  # and how many trials it trains
    "always -log p": (_always(NLL), 1),
    "always -p": (_always(MINUS_P), 1),
    "always exponent 0.5": (_always(Power(exponent=0.5)), 1),
    "advice, the paper alone": (_by_paper, 1),
    "advice, with the other tasks": (_by_tasks, 1),
    "auto": (_auto, 1),
    "auto, following": (_auto_follow, 1),
    "the better of the two that are advised first": (_two_first, 2),
}


# --- the table ------------------------------------------------------------------------------------------------------


def regrets(policy: Policy, known: Known) -> dict[Case, float]:
    """Points of accuracy behind the best objective of the grid; below 0 where a policy trains what is not in it."""
    found = {case: policy(case, known) for case in known}
    return {case: 100 * (known[case].best - value) for case, value in found.items() if value is not None}


def errors(regret: Mapping[Case, float]) -> tuple[float | None, float | None]:
    """Standard errors of the mean regret: over cases, and over seeds (each the mean of its cases)."""
    seeds = [mean(v for c, v in regret.items() if c.seed == seed) for seed in {case.seed for case in regret}]
    over_cases, over_seeds = (
        stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None for values in (list(regret.values()), seeds)
    )
    return over_cases, over_seeds


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return mean(listed) if listed else None


def report(known: Known) -> str:
    """Tables: of policies, of policies by task, and of all cases."""
    trials = len(next(iter(known.values())).trials)
    total = sum(study.seconds() for study in known.values())
    probes = sum(study.probe_seconds for study in known.values())
    rows, tasks = [], sorted({case.task for case in known})
    for name, (policy, trained) in POLICIES.items():
        found = regrets(policy, known)
        if not found:
            continue
        over_cases, over_seeds = (number(error, ".1f") for error in errors(found))
        own = [number(_mean(v for c, v in found.items() if c.task == task), ".1f") for task in tasks]
        worst = max(found.values())
        within = sum(value <= 1 for value in found.values()) / len(found)
        cost = (probes + total * trained / trials) / total
        figures = [f"{mean(found.values()):.1f}", over_cases, over_seeds, f"{worst:.1f}", f"{within:.0%}"]
        rows.append([name, *figures, *own, f"{cost:.2f}"])
    head = ["policy", "mean regret", "se, cases", "se, seeds", "worst", "within 1 point", *tasks, "cost"]
    seeds = sorted({case.seed for case in known})
    about = (
        f"{len(known)} cases, seeds {seeds}; the sweep: {trials} objectives, {total / len(known):.0f} s a case; "
        f"a probe with all that is loaded for it: {probes / len(known):.1f} s, {probes / total:.3f} of the sweep"
    )
    return f"{about}\n\n{table(head, rows)}\n\n{_cases(known)}"


def _cases(known: Known) -> str:
    labels = list(next(iter(known.values())).trials)
    rows = []
    for case, study in sorted(known.items(), key=lambda item: (item[0].task, item[0].noisy, item[0].name())):
        values = [number(study.trials[label]["accuracy"], ".3f") for label in labels]
        choice = advised(case, known).choices[0].objective.label()
        follow = _auto_follow(case, known)
        p = number(study.capability.mean_probability, ".3f")
        rows.append([case.name(), p, *values, number(follow, ".3f"), choice])
    return table(["case", "p", *labels, "following", "advised"], rows)
