"""What the project exists for: objectives on the target's probability, and the head that computes them.

An objective is its own section of a sweep file: typed, bounded parameters beside the formula. The objectives use only
methods of the tensors they are given, so that naming one imports no torch; the head does, when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from raysft.objectives.base import IGNORE_INDEX, DistributionObjective, Objective, Selection
from raysft.objectives.power import Power
from raysft.objectives.registry import build, known

if TYPE_CHECKING:
    from raysft.objectives.head import linear_objective, naive_objective

__all__ = [
    "IGNORE_INDEX",
    "DistributionObjective",
    "Objective",
    "Power",
    "Selection",
    "build",
    "known",
    "linear_objective",
    "naive_objective",
]


def __getattr__(name: str) -> Any:
    if name in ("linear_objective", "naive_objective"):
        from raysft.objectives import head

        return getattr(head, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
