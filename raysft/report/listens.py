"""What an objective listens to: the weight that it gives to the correct token, over the base model's own p."""

import math

import numpy as np
from matplotlib.figure import Figure

from raysft.capability import Capability
from raysft.config import PAPER_BASELINES
from raysft.objectives import Objective, Selection
from raysft.report import chart
from raysft.report.chart import Drawing, Missing, draw, legend, mark
from raysft.results import Study
from raysft.verdict import Verdict

GRID = np.linspace(1e-4, 1 - 1e-4, 400)


def weight(objective: Objective, p: np.ndarray) -> np.ndarray:
    """W(p) = s(p)(1 - p), the gradient of the correct logit (arXiv 2510.00526, Sec. 3): [N] -> [N]."""
    import torch

    return objective.weight(torch.from_numpy(np.log(p))).numpy() * (1 - p)


def share_below(objective: Objective, capability: Capability, p: float = 0.5) -> float:
    """The share of all weight that lies on tokens with a probability below p, as the base model has them; NaN: of 0."""
    edges = np.linspace(0, 1, len(capability.histogram) + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    held = weight(objective, middles) * np.array(capability.histogram)
    return float(held[middles < p].sum() / held.sum()) if held.sum() else math.nan


def listens(study: Study, verdict: Verdict, name: str) -> Drawing | Missing:
    title = "What the objective listens to"
    capability = study.capability
    if capability is None:
        return Missing(title, "The base model's probabilities were not tracked.")
    winner = verdict.recommended.objective if verdict.recommended else None
    shown, left_out = _drawable([winner, *PAPER_BASELINES])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bins = np.linspace(0, 1, len(capability.histogram) + 1)
        tokens = np.array(capability.histogram) / max(capability.histogram)
        axes.bar(bins[:-1], tokens, np.diff(bins), align="edge", color=chart.LIGHT, label="tokens of the base model")
        for objective in shown[::-1]:
            look, values = mark(objective), weight(objective, GRID)
            share = share_below(objective, capability)
            axes.plot(
                GRID,
                values / (values.max() or 1.0),
                color=look.color,
                ls=look.dash,
                marker=look.marker,
                markevery=80,
                lw=2.5 if objective is shown[0] else 1.5,
                label=f"{objective.label()}: {share:.0%} at p < 0.5",
            )
        axes.set(xlabel="p of the correct token", ylabel="relative to the largest", xlim=(0, 1), ylim=(0, 1.05))
        legend(figure, axes, columns=1)

    text = (
        "The weight W(p) = s(p)(1 - p) that an objective gives to a token, over how many tokens the base model has at "
        "each p; in the legend, how much of all weight lies on tokens with p below one half."
    )
    if left_out:
        text += f" {left_out} is no function of p alone and is left out."
    return draw(f"{name}-weight", title, text, paint, height=4.6)


def _drawable(objectives: list[Selection | None]) -> tuple[list[Objective], str]:
    """Those that are functions of p, each once and as they begin, and the label of one that is none."""
    distinct = list(dict.fromkeys(o for o in objectives if o is not None))
    functions = [o for o in distinct if isinstance(o, Objective) and not o.needs_sample_nll]
    other = next((o.label() for o in distinct if o not in functions), "")
    return [o.at(0.0) for o in functions], other
