"""The capability continuum: what each backbone wants over how capable it is, with the paper's backbones beside it."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from raysft.objectives import Power
from raysft.paper import CITATION, MEASURED
from raysft.report import chart
from raysft.report.chart import Drawing, Missing, draw, exponent_axis, legend
from raysft.report.tried import exponent
from raysft.results import Study
from raysft.verdict import Verdict

DOMAINS = {"math": "^", "medical": "s", "figlet font": "v"}


@dataclass(frozen=True)
class _Point:
    """A backbone of the user's. gain: of -p over -log p, in points; None where it is not known."""

    name: str
    capability: float
    exponent: float | None
    gain: float | None


def continuum(judged: list[tuple[Study, Verdict]]) -> Drawing | Missing:
    title = "The capability continuum"
    own = [_point(study, verdict) for study, verdict in judged if study.capability]
    if not any(p.exponent is not None or p.gain is not None for p in own):
        return Missing(title, "No backbone has both a measured capability and an exponent to show.")

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True)
        papers = [max(m.scores, key=lambda a: m.scores[a]) for m in MEASURED]
        exponent_axis(upper, "y", [*papers, *(p.exponent for p in own if p.exponent is not None)])
        lower.axhline(0, color=chart.GREY, lw=1)
        for domain, marker in DOMAINS.items():
            measured = [m for m in MEASURED if m.domain == domain]
            x = [m.capability for m in measured]
            look = {"marker": marker, "ls": "", "mfc": "none", "color": chart.GREY, "label": f"the paper's, {domain}"}
            upper.plot(x, [max(m.scores, key=lambda a: m.scores[a]) for m in measured], **look)
            lower.plot(x, [m.scores[1] - m.scores[0] for m in measured], **look)
        label = "this report's"
        for point in own:
            for axes, y in ((upper, point.exponent), (lower, point.gain)):
                if y is not None:
                    axes.plot([point.capability], [y], "o", color=chart.VERMILION, ms=8, label=label)
                    axes.annotate(point.name, (point.capability, y), (6, 5), textcoords="offset points", fontsize=9)
            label = "_again"
        upper.set(ylabel="best exponent", xlim=(-0.03, 1.03))
        lower.set(ylabel="-p over -log p,\npoints", xlabel="capability: mean p of the training targets")
        lower.margins(y=0.15)
        legend(figure, lower)

    text = (
        "Above, the exponent that does best; below, how many points of accuracy -p is ahead of -log p. Hollow: the "
        f"paper's 12 pairs of backbone and domain ({CITATION}), on other data, with exponents 0 and 1 and once 10."
    )
    return draw("continuum", title, text, paint, height=5.0)


def _point(study: Study, verdict: Verdict) -> _Point:
    assert study.capability is not None
    chosen = verdict.recommended
    nll, minus_p = (_score(study, verdict, Power(exponent=a)) for a in (0, 1))
    known = nll is not None and minus_p is not None and study.metric.endswith("accuracy")
    return _Point(
        study.backbone,
        study.capability.mean_probability,
        exponent(chosen.objective) if chosen else None,
        100 * (minus_p - nll) if known else None,  # type: ignore[operator]
    )


def _score(study: Study, verdict: Verdict, objective: Power) -> float | None:
    """Of a baseline: confirmed with fresh seeds, or else of the search."""
    for candidate in verdict.confirmed:
        if candidate.objective == objective:
            return candidate.mean
    return next((study.value(t) for t in study.compared() if t.objective == objective), None)
