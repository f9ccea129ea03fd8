"""How baselines and winner learned, step by step."""

import numpy as np
from matplotlib.figure import Figure

from raysft.config import PAPER_BASELINES
from raysft.report.chart import Drawing, Missing, draw, legend, mark
from raysft.results import Study, Trial, history
from raysft.verdict import Verdict

POINTS = 100  # of a curve; more are averaged
TRAINING = (("train/loss", "train/loss,\nof its start"), ("train/mean_probability", "train/mean_\nprobability"))


def curves(study: Study, verdict: Verdict, name: str) -> Drawing | Missing:
    title = "While training"
    trials = _shown(study, verdict)
    rows = [(label, _read(study, trials, metric, relative=metric == "train/loss")) for metric, label in TRAINING]
    heldout = [(metric, _read(study, trials, metric)) for metric in dict.fromkeys((study.metric, "eval/nll"))]
    watched = [(metric, found) for metric, found in heldout if any(len(steps) > 1 for steps, _ in found.values())]
    panels = [(label, found) for label, found in [*rows, *watched] if found]
    if not panels:
        return Missing(title, "No trial tracked more than one step.")

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, found) in zip(rows, panels, strict=True):
            for trial in (t for t in trials if t.run_id in found):
                look, (steps, values) = mark(trial.objective), found[trial.run_id]
                every = max(1, len(steps) // 6)
                axes.plot(steps, values, look.dash, color=look.color, marker=look.marker, ms=5, markevery=every)
                axes.lines[-1].set_label(trial.label)
            axes.set_ylabel(label)
        rows[-1].set_xlabel("step")
        legend(figure, rows[0])

    text = (
        "The paper's baselines and the recommended objective. Losses of two objectives are on no common scale, so each "
        "is shown relative to its own start."
    )
    if not watched:
        text += " Held-out scores were taken at the end only: evaluation.every gives curves of them."
    return draw(f"{name}-curves", title, text, paint, height=1.1 + 1.5 * len(panels))


def _shown(study: Study, verdict: Verdict) -> list[Trial]:
    """The baselines' trials and the best of what is recommended, one an objective."""
    found: dict[str, Trial] = {}
    label = verdict.recommended.label if verdict.recommended else None
    for trial in study.compared():
        if trial.objective in PAPER_BASELINES or trial.label == label:
            found.setdefault(trial.label, trial)
    return list(found.values())


def _read(
    study: Study, trials: list[Trial], metric: str, relative: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Run -> steps and values of at most POINTS points; nothing of runs without."""
    found = {}
    for trial in trials:
        steps, values = history(study, trial, metric)
        if len(steps):
            first = values[0] if relative and values[0] else 1.0
            found[trial.run_id] = (_averaged(steps), _averaged(values / first))
    return found


def _averaged(values: np.ndarray) -> np.ndarray:
    parts = np.array_split(values, min(len(values), POINTS))
    return np.array([part.mean() for part in parts])
