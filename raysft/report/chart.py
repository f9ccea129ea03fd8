"""What all figures of a report share: their look, and a figure as SVG for the page and as PNG.

The same data give the same bytes. Okabe and Ito's colours; each thing has a marker or a dash of its own as well, so
that colour is never the only sign.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import FuncScale
from matplotlib.ticker import FuncFormatter

from raysft.config import PAPER_BASELINES
from raysft.objectives import Selection

BLACK, GREY, LIGHT = "#000000", "#666666", "#d9d9d9"
BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
SCALE = "cividis"  # from worse to better; it reads in grey, too

WIDTH, HEIGHT = 4.4, 3.4  # inches: 317 units of SVG, so that on a phone text is no smaller than it is meant
PNG_DPI = 200
EXPONENT_TICKS = (-10, -3, -1, 0, 0.1, 0.3, 1, 3, 10, 30)
LINEAR_BELOW = 0.1  # exponents nearer to 0 than this lie on a linear scale, so that 0 has a place

STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "raysft",
}


@dataclass(frozen=True)
class Drawing:
    """A figure. name: of its files; text: what it shows, also for those who cannot see it."""

    name: str
    title: str
    text: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn, and why."""

    title: str
    why: str


@dataclass(frozen=True)
class Mark:
    """How an objective looks in every figure."""

    color: str
    marker: str
    dash: Any


SEARCHED = Mark(BLUE, "o", "-")
MARKS = (Mark(BLUE, "o", "-"), Mark(VERMILION, "s", "--"), Mark(GREEN, "^", "-."), Mark(PURPLE, "D", ":"))
WINNER = Mark(BLACK, "*", "-")


def mark(objective: Selection | None) -> Mark:
    """Of a baseline of the paper its own, of all others the same."""
    return MARKS[PAPER_BASELINES.index(objective)] if objective in PAPER_BASELINES else WINNER


def draw(name: str, title: str, text: str, paint: Callable[[Figure], None], height: float = HEIGHT) -> Drawing:
    """paint: is given an empty figure. height: inches."""
    with styled():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        return Drawing(name, title, text, _svg(figure, name, text), _bytes(figure, "png", dpi=PNG_DPI))


@contextmanager
def styled() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Below everything, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def exponent_axis(axes: Axes, which: Literal["x", "y"], exponents: Sequence[float]) -> None:
    """A scale on which 0, tenths and tens all have room."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": FuncScale(axis, (spread, unspread))})  # type: ignore[arg-type]
    places = spread(np.array([min([0.0, *exponents]), max([1.0, *exponents])]))
    margin = 0.04 * float(places[1] - places[0])
    limits = unspread(places + np.array([-margin, margin]))
    axes.set(**{f"{which}lim": tuple(limits)})
    axis.set_ticks([tick for tick in EXPONENT_TICKS if limits[0] <= tick <= limits[1]])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def spread(exponents: np.ndarray) -> np.ndarray:
    """Where exponents lie on that scale, in decades."""
    size = np.abs(exponents) / LINEAR_BELOW
    return np.sign(exponents) * np.where(size <= 1, 0.4 * size, 0.4 + np.log10(np.maximum(size, 1)))


def unspread(places: np.ndarray) -> np.ndarray:
    """The exponents that lie there."""
    size = np.abs(places)
    return np.sign(places) * LINEAR_BELOW * np.where(size <= 0.4, size / 0.4, 10 ** (size - 0.4))


def _svg(figure: Figure, name: str, text: str) -> str:
    """To stand in a page beside others: ids that no other has, no size, nothing that leads elsewhere."""
    whole = _bytes(figure, "svg", metadata={"Date": None}).decode()
    inner = re.sub(r"<metadata>.*?</metadata>", "", whole[whole.index("<svg") :], flags=re.DOTALL)
    _, _, rest = inner.partition(">")
    box = re.search(r'viewBox="[^"]*"', inner)
    assert box is not None
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'url\(#|href="#', lambda found: f"{found[0]}{name}-", rest)
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" {box[0]}>{rest}'


def _bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
