"""What a search may choose: families of objectives, each with ranges of its own parameters, thresholds and rates."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, create_model, model_validator

from raysft.objectives.base import Keep, Selection, ThresholdUnit
from raysft.objectives.power import Power
from raysft.objectives.registry import known, name_of
from raysft.refusal import refusals
from raysft.strict import Strict


def _power_unless_named(value: Any) -> Any:
    return {"type": "power", **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    AnyObjective = Selection
else:
    _Tagged = Annotated[Union[tuple(known().values())], Field(discriminator="type")]  # noqa: UP007
    AnyObjective = Annotated[_Tagged, BeforeValidator(_power_unless_named)]

PAPER_BASELINES = (
    Power(exponent=0),
    Power(exponent=1),
    Power(exponent=10),
    Power(exponent=0, threshold=0.2),
)


class Range(Strict):
    """An interval that the sampler draws from."""

    low: FiniteFloat
    high: FiniteFloat
    log: bool = Field(default=False, description="draw uniformly in the logarithm")
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs low > 0; list the values instead, or drop log")
        if self.log and self.step is not None:
            raise ValueError("step and log exclude each other")
        return self

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


Choices = Annotated[list[FiniteFloat], Field(min_length=1)]
Dimension = Range | Choices | FiniteFloat  # drawn from, chosen from, or the same for every trial


def bounds(dimension: Dimension) -> tuple[float, float]:
    """Smallest and largest value of a dimension."""
    if isinstance(dimension, Range):
        return dimension.bounds()
    values = dimension if isinstance(dimension, list) else [dimension]
    return min(values), max(values)


def _searched(annotation: Any) -> Any:
    """What the space may hold for a parameter: a range, a list of values or a value; no range but of real numbers."""
    if get_origin(annotation) is Annotated:
        return _searched(get_args(annotation)[0])
    members = [m for m in get_args(annotation) if m is not type(None)] if type(None) in get_args(annotation) else []
    if members:
        return _searched(members[0]) | None
    return Dimension if annotation is float else annotation | Annotated[list[annotation], Field(min_length=1)]


def _family(cls: type[Selection]) -> type[Strict]:
    """An objective's own parameters as dimensions of the search."""
    fields: dict[str, Any] = {"type": (Literal[name_of(cls)], Field(default=name_of(cls)))}
    for name, field in cls.model_fields.items():
        if name not in Selection.model_fields and name not in cls.filled_in:
            default = ... if field.is_required() else field.default
            fields[name] = (_searched(field.annotation), Field(default=default, description=field.description))
    if cls is Power:
        fields["exponent"] = (Dimension | None, Field(default=None, description="null: that of the space"))
    return create_model(f"{cls.__name__}Space", __base__=Strict, __module__=__name__, **fields)


FAMILIES = {name: _family(cls) for name, cls in known().items()}
globals().update({family.__name__: family for family in FAMILIES.values()})  # where pickle, and so Ray, looks for them
if TYPE_CHECKING:
    AnyFamily = Any
else:
    AnyFamily = Annotated[Union[tuple(FAMILIES.values())], Field(discriminator="type")]  # noqa: UP007


class SpaceConfig(Strict):
    """What the search may choose. A threshold's value and side are asked for only where a trial has a threshold."""

    exponent: Dimension = Field(default=Range(low=0, high=10), description="of power, where it is searched")
    objectives: Annotated[list[AnyFamily], Field(min_length=1)] = Field(
        default=[FAMILIES["power"]()], description="families to choose from, each with ranges of its own parameters"
    )
    threshold: Dimension | None = Field(default=None, description="null: no trial of the search has a threshold")
    threshold_optional: bool = Field(default=True, description="a trial first chooses whether to have a threshold")
    threshold_unit: ThresholdUnit = "probability"
    upper: Dimension | None = Field(default=None, description="bound above of what a threshold keeps; null: none")
    keep: Annotated[list[Keep], Field(min_length=1)] = Field(default=["above"])
    learning_rate: Dimension | None = Field(default=None, description="null: the training section's for every trial")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.threshold is not None and not (bounds(self.threshold)[0] >= 0 and bounds(self.threshold)[1] <= 1):
            raise ValueError("thresholds lie between 0 and 1")
        if self.upper is not None:
            if self.threshold is None or self.keep != ["above"]:
                raise ValueError("upper bounds what a threshold keeps above itself: set threshold, and keep to [above]")
            if not bounds(self.threshold)[1] <= bounds(self.upper)[0] or bounds(self.upper)[1] > 1:
                raise ValueError("upper lies between the largest threshold and 1")
        if self.learning_rate is not None and bounds(self.learning_rate)[0] <= 0:
            raise ValueError("learning rates are above 0")
        names = [family.type for family in self.objectives]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"objectives has '{duplicate}' twice: give it one entry, with ranges or lists of values")
        self._each_value_once()
        for family in self.objectives:
            self._taken(family.type)
        return self

    def _each_value_once(self) -> None:
        """Raises ValueError for a list that has a value twice: a grid would run it twice, and Optuna favours it."""
        lists = {key: getattr(self, key) for key in ("exponent", "threshold", "upper", "keep", "learning_rate")}
        for family in self.objectives:
            lists |= {f"{family.type}.{key}": value for key, value in self.dimensions(family.type).items()}
        for key, values in lists.items():
            if isinstance(values, list) and len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                shown = f"{twice:g}" if isinstance(twice, float) else twice
                raise ValueError(f"{key} lists {shown} twice: name each value once")

    def _taken(self, name: str) -> None:
        """Raises ValueError unless the objective takes the ends of each range and every value of each list."""
        dimensions = self.dimensions(name)
        longest = max((len(d) for d in dimensions.values() if isinstance(d, list)), default=0)
        for position in range(max(2, longest)):
            values = {key: _sample(dimension, position) for key, dimension in dimensions.items()}
            try:
                known()[name].model_validate(values)
            except ValidationError as error:
                refusal = refusals(known()[name], error)[0]
                key = ".".join([name, *map(str, refusal.loc)])
                raise ValueError(f"objectives: {key}: {refusal.reason}") from None

    def dimensions(self, name: str) -> dict[str, Any]:
        """Of an objective among `objectives`: its own parameters, each a range, a list of values or a value."""
        family = next(f for f in self.objectives if f.type == name)
        own = {key: getattr(family, key) for key in type(family).model_fields if key != "type"}
        if name == "power" and own["exponent"] is None:
            own["exponent"] = self.exponent
        return own


def _sample(dimension: Any, position: int) -> Any:
    """A range's low, then its high; a list's values in turn, of which the last stays."""
    values = dimension.bounds() if isinstance(dimension, Range) else dimension
    return values[min(position, len(values) - 1)] if isinstance(values, list | tuple) else values
