"""What the project exists for: objectives on the target's probability, and the head that computes them.

Pure tensors: no trainer, no rank, no config tree.
"""

from raysft.objectives.base import IGNORE_INDEX, Objective, build
from raysft.objectives.head import linear_objective, naive_objective
from raysft.objectives.power import Power

__all__ = ["IGNORE_INDEX", "Objective", "Power", "build", "linear_objective", "naive_objective"]
