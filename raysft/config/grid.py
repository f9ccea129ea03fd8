"""A space of finitely many points, one after the other: what the sampler `grid` goes through.

Ours instead of Optuna's BruteForceSampler: that one draws in a random order, and asks the study's trials what is left,
of which failed ones are unknown here. This order follows from the sweep file alone, so that a number says where it is.
"""

from collections.abc import Iterator
from decimal import Decimal
from itertools import product
from math import prod
from typing import Any

from raysft.config.space import Range, SpaceConfig
from raysft.objectives.base import Selection
from raysft.objectives.registry import known

LARGEST = 10_000  # points


def unlisted(space: SpaceConfig) -> str | None:
    """The first dimension that has no end of values, as a key of the space; None where all of them can be listed."""
    own = {key: d for family in space.objectives for key, d in _own(space, family.type).items()}
    dimensions = {**own, "threshold": space.threshold, "upper": space.upper, "learning_rate": space.learning_rate}
    return next((key for key, d in dimensions.items() if isinstance(d, Range) and d.step is None), None)


def size(space: SpaceConfig) -> int:
    """How many points there are, without making them."""
    intervals = 1
    if space.threshold is not None:
        intervals = _count(space.threshold) * _count(space.upper) * len(space.keep) + space.threshold_optional
    families = sum(prod(map(_count, space.dimensions(family.type).values())) for family in space.objectives)
    return families * intervals * _count(space.learning_rate)


def points(space: SpaceConfig) -> Iterator[tuple[Selection, float | None]]:
    """Each point's objective and learning rate (None: the training section's), each once.

    The families come in turn, of each first all without a threshold, then those of each threshold; within these the
    family's own parameters change, the last one fastest, and with each of them the rate.
    """
    for family in space.objectives:
        own = space.dimensions(family.type)
        for interval in _intervals(space):
            for values in product(*map(_values, own.values())):
                objective = known()[family.type].model_validate(dict(zip(own, values, strict=True)) | interval)
                for rate in _values(space.learning_rate):
                    yield objective, rate


def _own(space: SpaceConfig, name: str) -> dict[str, Any]:
    """The parameters of an objective under the keys by which a user knows them."""
    dimensions = space.dimensions(name)
    return {key if key == "exponent" else f"objectives: {name}.{key}": d for key, d in dimensions.items()}


def _intervals(space: SpaceConfig) -> Iterator[dict[str, Any]]:
    """What is set of an objective's threshold: nothing, or all that belongs to it."""
    if space.threshold is None or space.threshold_optional:
        yield {}
    if space.threshold is not None:
        for threshold, upper, keep in product(_values(space.threshold), _values(space.upper), space.keep):
            yield {"threshold": threshold, "upper": upper, "keep": keep, "threshold_unit": space.threshold_unit}


def _count(dimension: Any) -> int:
    if isinstance(dimension, Range):
        return int((_exact(dimension.high) - _exact(dimension.low)) // _exact(dimension.step or 0)) + 1
    return len(dimension) if isinstance(dimension, list) else 1


def _values(dimension: Any) -> list[Any]:
    """In the order in which they are listed; of a range upwards, as decimal numbers: 0.1, 0.2, 0.3."""
    if isinstance(dimension, Range):
        low, step = _exact(dimension.low), _exact(dimension.step or 0)
        return [float(low + i * step) for i in range(_count(dimension))]
    return dimension if isinstance(dimension, list) else [dimension]


def _exact(number: float) -> Decimal:
    """The number as it was written."""
    return Decimal(repr(number))
