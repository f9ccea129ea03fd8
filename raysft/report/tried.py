"""What a backbone's trials have tried and what came of it: over the exponent, over the threshold, over all at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from raysft.objectives import Power, Selection
from raysft.objectives.base import Keep
from raysft.report import chart
from raysft.report.chart import Drawing, Mark, Missing, draw, exponent_axis, legend, mark, spread, unspread
from raysft.report.intervals import Interval, of_candidate, of_trial
from raysft.results import Study, Trial
from raysft.verdict import Candidate, Verdict

BARS = 60  # points beyond which bars of error hide each other
CELLS = 6  # of the heat map, each way
MANY = 150  # lines beyond which they are drawn thin
BACKGROUND = {"boxstyle": "round,pad=0.15", "fc": "w", "ec": "none", "alpha": 0.8}
SIDES: dict[Keep, Mark] = {"above": Mark(chart.BLUE, "^", ""), "below": Mark(chart.VERMILION, "v", "")}

Where = Callable[[Selection], float | None]


def exponent(objective: Selection | None) -> float | None:
    """Of the paper's family, where it does not move; None for anything else."""
    fixed = isinstance(objective, Power) and objective.final_exponent is None
    return objective.exponent if fixed else None  # type: ignore[union-attr]


def over_exponent(study: Study, verdict: Verdict, name: str) -> Drawing | Missing:
    """Trials without a threshold; a band joins them where they differ in nothing else."""
    title = "Over the exponent"

    def place(objective: Selection) -> float | None:
        return exponent(objective) if objective.threshold is None else None

    tried = _placed(study, place)
    if len({x for x, _ in tried}) < 2:
        return Missing(title, "Fewer than two exponents were tried without a threshold.")
    alike = len({t.learning_rate for _, t in tried}) == 1 and len({x for x, _ in tried}) == len(tried) <= BARS

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        exponent_axis(axes, "x", [x for x, _ in tried])
        if alike:
            found = [of_trial(study, trial) for _, trial in tried]
            xs = [x for x, _ in tried]
            axes.plot(xs, [i.value for i in found], color=chart.SKY, zorder=1)
            axes.fill_between(xs, [i.low for i in found], [i.high for i in found], color=chart.SKY, alpha=0.25, lw=0)
        _points(axes, study, tried, Mark(chart.BLUE, "o", ""), "trial")
        _headline(axes, study, verdict, place)
        axes.set(xlabel="exponent (0 is -log p, 1 is -p)", ylabel=study.metric)
        legend(figure, axes)

    text = f"{study.metric} of the trials without a threshold over their exponent. {_bars(study, tried)}"
    if len({t.learning_rate for _, t in tried}) > 1:
        text += " Learning rates differ from point to point."
    text += _anew(verdict)
    return draw(f"{name}-exponent", title, text, paint)


def over_threshold(study: Study, verdict: Verdict, name: str) -> Drawing | Missing:
    title = "Over the threshold"

    def place(objective: Selection) -> float | None:
        return objective.threshold

    tried = _placed(study, place)
    if len({x for x, _ in tried}) < 2:
        return Missing(title, "Fewer than two thresholds were tried.")
    whole = next((t for t in study.compared() if t.objective and t.objective.threshold is None), None)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for keep, side in SIDES.items():
            kept = [(x, t) for x, t in tried if t.objective and t.objective.keep == keep]
            if kept:
                _points(axes, study, kept, side, f"learns from p {'>=' if keep == 'above' else '<='} threshold")
        if whole is not None:
            value = study.value(whole)
            axes.axhline(value or 0.0, color=chart.GREY, ls="--", label=f"best without one: {whole.label}")
        _headline(axes, study, verdict, place)
        axes.set(xlabel="threshold on p", ylabel=study.metric)
        legend(figure, axes, columns=1)

    text = f"{study.metric} of the trials with a threshold over it, whatever their exponent. {_bars(study, tried)}"
    text += _anew(verdict)
    return draw(f"{name}-threshold", title, text, paint)


def heat_maps(study: Study, name: str) -> list[Drawing | Missing]:
    """One for each side that a threshold kept, as far as it was searched together with the exponent."""
    title = "Exponent and threshold together"
    maps = [found for keep in SIDES if (found := _heat_map(study, f"{name}-heat", title, keep))]
    return [*maps] or [Missing(title, "They were not searched together.")]


def _heat_map(study: Study, name: str, title: str, keep: Keep) -> Drawing | None:
    """Mean over the trials of each cell; those without a threshold have a row of their own."""
    found = [(a, t.objective.threshold, study.value(t) or 0.0) for t in study.compared()
             if t.objective and (a := exponent(t.objective)) is not None
             and (t.objective.threshold is None or t.objective.keep == keep)]  # fmt: skip
    thresholds = {threshold for _, threshold, _ in found if threshold is not None}
    if len({a for a, _, _ in found}) < 2 or len(thresholds) < 2:
        return None
    places = spread(np.array([a for a, _, _ in found]))
    columns = np.linspace(places.min(), places.max(), CELLS + 1)
    rows = np.linspace(0, max(thresholds), CELLS)
    column = np.clip(np.searchsorted(columns, places, side="right") - 1, 0, CELLS - 1)
    row = np.array([0 if t is None else np.clip(np.searchsorted(rows, t, side="right"), 1, CELLS - 1)
                    for _, t, _ in found])  # fmt: skip
    sums, counts = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    np.add.at(sums, (row, column), [value for _, _, value in found])
    np.add.at(counts, (row, column), 1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(False)
        scale = chart.SCALE if study.mode == "max" else f"{chart.SCALE}_r"
        cells = axes.imshow(means, cmap=scale, origin="lower", aspect="auto")
        for (y, x), value in np.ndenumerate(means):
            if not np.isnan(value):
                dark = np.mean(cells.to_rgba(value)[:3]) < 0.5
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=9, color="w" if dark else "k")
        edges = unspread(columns)
        axes.set_xticks(np.arange(CELLS + 1) - 0.5, [f"{edge:.2g}" for edge in edges])
        axes.set_yticks([0, *np.arange(CELLS) + 0.5], ["none", *(f"{edge:.2g}" for edge in rows)])
        axes.set(xlabel="exponent", ylabel=f"threshold: learns from p {keep} it")
        figure.colorbar(cells, ax=axes, label=study.metric)

    text = f"Mean {study.metric} of the trials in each cell; a cell without a number has none."
    return draw(f"{name}-{keep}", f"{title}, learning {keep} it", text, paint)


def parallel(study: Study, verdict: Verdict, name: str) -> Drawing | Missing:
    """All that differs between the trials, and what came of it: a line for each."""
    title = "All trials at once"
    trials = study.compared()[::-1]  # the best are drawn last, over the others
    scales = [
        scale for scale in _scales(study, trials) if len(set(scale.shares[~np.isnan(scale.shares)])) > 1 or scale.last
    ]
    if len(scales) < 3:
        return Missing(title, "The trials differ in one thing only, which has a figure of its own.")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(False)
        xs = np.arange(len(scales))
        shares = np.column_stack([np.nan_to_num(scale.shares, nan=-0.12) for scale in scales])
        values = scales[-1].shares
        lines = LineCollection(
            [np.column_stack([xs, line]) for line in shares],
            array=values if study.mode == "max" else -values,
            cmap=chart.SCALE,
            alpha=0.35 if len(trials) > MANY else 0.8,
            linewidths=0.7 if len(trials) > MANY else 1.3,
        )
        axes.add_collection(lines)
        best = shares[-1]
        axes.plot(xs, best, color=chart.BLACK, marker="*", ms=10, lw=2, label=f"best: {trials[-1].label}")
        for x, scale in enumerate(scales):
            axes.axvline(x, color=chart.GREY, lw=1, zorder=0)
            for share, text in scale.ticks:
                axes.text(x, share, text, ha="center", va="center", fontsize=8, bbox=BACKGROUND)
        axes.set_xticks(xs, [scale.name.replace(" ", "\n").replace("/", "/\n") for scale in scales])
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.set(xlim=(-0.3, len(scales) - 0.7), ylim=(-0.2, 1.05))
        axes.spines[["left", "bottom"]].set_visible(False)
        legend(figure, axes)

    return draw(f"{name}-parallel", title, "Each line is a trial; lighter ones came to a better end.", paint)


# --- points -----------------------------------------------------------------------------------------------------------


def _placed(study: Study, place: Where) -> list[tuple[float, Trial]]:
    """The compared trials that have a place, from left to right."""
    found = [(place(t.objective), t) for t in study.compared() if t.objective]
    return sorted(((x, t) for x, t in found if x is not None), key=lambda pair: pair[0])


def _points(axes: Axes, study: Study, tried: Sequence[tuple[float, Trial]], look: Mark, label: str) -> None:
    found = [of_trial(study, trial) for _, trial in tried]
    many = len(tried) > BARS
    axes.errorbar(
        [x for x, _ in tried],
        [i.value for i in found],
        yerr=None if many else _reach(found),
        fmt=look.marker,
        color=look.color,
        alpha=0.4 if many else 0.9,
        ms=4 if many else 5,
        lw=1,
        label=label,
    )


def _headline(axes: Axes, study: Study, verdict: Verdict, place: Where) -> None:
    """What was confirmed with fresh seeds, and what the verdict recommends."""
    for candidate in verdict.confirmed:
        if (x := _at(candidate, place)) is not None:
            look, at = mark(candidate.objective), of_candidate(study, candidate)
            label = f"{candidate.label}, {len(candidate.trials)} seeds"
            axes.errorbar([x], [at.value], _reach([at]), fmt=look.marker, color=look.color, mec="k", ms=9, capsize=4)
            axes.containers[-1].set_label(label)
    chosen = verdict.recommended
    if chosen and chosen not in verdict.confirmed and (x := _at(chosen, place)) is not None:
        axes.plot([x], [chosen.mean], "*", color=chart.BLACK, ms=13, label=chosen.label)


def _at(candidate: Candidate, place: Where) -> float | None:
    return place(candidate.objective) if candidate.objective else None


def _reach(found: Sequence[Interval]) -> np.ndarray | None:
    """How far the intervals go below and above the values: [2, points]."""
    if not any(i.known for i in found):
        return None
    return np.array([[i.value - i.low for i in found], [i.high - i.value for i in found]])


def _bars(study: Study, tried: Sequence[tuple[float, Trial]]) -> str:
    """What the bars mean, or that there are none."""
    if len(tried) > BARS:
        return "Intervals are left out, since so many would hide each other."
    if any(study.error(trial) for _, trial in tried):
        return "Bars: 95 % intervals over problems; other seeds differ, too."
    return "Its standard error was not tracked."


def _anew(verdict: Verdict) -> str:
    """What the headline points are, where there are some."""
    return " Large: means over other seeds, on problems that the search never saw." if verdict.confirmed else ""


# --- axes of the parallel coordinates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """shares: of each trial, 0 at the bottom to 1 at the top; NaN where it has none. last: always shown."""

    name: str
    shares: np.ndarray
    ticks: list[tuple[float, str]]
    last: bool = False

    @property
    def varies(self) -> bool:
        return len(np.unique(self.shares)) > 1


def _scales(study: Study, trials: list[Trial]) -> list[_Scale]:
    families = [t.objective.type if t.objective else "?" for t in trials]
    names = sorted(set(families))
    family = np.array([names.index(f) / max(1, len(names) - 1) for f in families])
    ticks = [(i / max(1, len(names) - 1), name) for i, name in enumerate(names)]
    exponents = [exponent(t.objective) for t in trials]
    thresholds = [t.objective.threshold if t.objective else None for t in trials]
    return [
        _Scale("objective", family, ticks),
        _scale("exponent", exponents, spread, unspread),
        _scale("threshold", thresholds),
        _scale("learning rate", [t.learning_rate for t in trials], np.log10, lambda places: 10.0**places),
        _scale(study.metric, [study.value(t) for t in trials], last=True),
    ]


def _scale(
    name: str,
    values: Sequence[float | None],
    to: Callable[[np.ndarray], np.ndarray] = np.asarray,
    back: Callable[[np.ndarray], np.ndarray] = np.asarray,
    last: bool = False,
) -> _Scale:
    """to: the values' places on a scale of their own; back: the other way."""
    places = to(np.array([np.nan if value is None else value for value in values], dtype=float))
    if np.isnan(places).all():
        return _Scale(name, places, [], last)
    low, high = float(np.nanmin(places)), float(np.nanmax(places))
    at = np.linspace(low, high, 5)
    ticks = [(i / 4, f"{value:.2g}") for i, value in enumerate(back(at))]
    if np.isnan(places).any():
        ticks.append((-0.12, "none"))
    return _Scale(name, (places - low) / ((high - low) or 1.0), ticks, last)
