"""The page: everything of a report in one HTML file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raysft import __version__
from raysft.advisor import regime
from raysft.config import PAPER_BASELINES
from raysft.paper import CITATION
from raysft.report.chart import Drawing, Missing
from raysft.report.cost import Cost
from raysft.report.intervals import Interval, of_candidate, of_trial
from raysft.results import Study, Trial
from raysft.verdict import Verdict

Figure = Drawing | Missing


@dataclass(frozen=True)
class Section:
    """Of one backbone."""

    study: Study
    verdict: Verdict
    figures: Sequence[Figure]
    costs: Sequence[Cost]


def page(sections: Sequence[Section], across: Figure) -> str:
    environment = Environment(
        loader=PackageLoader("raysft.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"hours": _hours, "tokens": _tokens, "interval": _interval, "short": _short}
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(section.study.sweep for section in sections)),
        sections=sections,
        across=across,
        baselines=[baseline.label() for baseline in PAPER_BASELINES],
        of_label=_of_label,
        of_trial=of_trial,
        regime=regime,
        is_drawn=lambda figure: isinstance(figure, Drawing),
        svg=_svg,
        citation=CITATION,
        version=__version__,
    )


def _svg(drawing: Drawing) -> Markup:
    # matplotlib escaped what it holds
    return Markup(drawing.svg)  # nosec B704


def _of_label(section: Section, label: str) -> Interval | None:
    """An objective's value: confirmed with fresh seeds, or else of its best trial."""
    study = section.study
    for candidate in section.verdict.confirmed:
        if candidate.label == label:
            return of_candidate(study, candidate)
    trial = next((t for t in study.compared() if t.label == label), None)
    return of_trial(study, trial) if trial else None


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    edges = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.known else ""
    return f"{interval.value:.3f}{edges}"


def _hours(cost: Cost) -> str:
    if cost.hours is None:
        return "unknown"
    if cost.hours < 1:
        return f"{60 * cost.hours:.1f} {cost.unit} minutes"
    return f"{cost.hours:,.1f} {cost.unit} hours"


def _tokens(tokens: float | None) -> str:
    if tokens is None:
        return "unknown"
    unit, name = next(((u, n) for u, n in ((1e9, " billion"), (1e6, " million")) if tokens >= u), (1, ""))
    return f"{tokens / unit:,.1f}{name}" if name else f"{tokens:,.0f}"


def _short(trial: Trial) -> str:
    """How long it ran."""
    return f"{trial.seconds / 60:,.1f}"
