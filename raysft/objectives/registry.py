"""Objectives by name: those of this package, and those that other packages announce as entry points."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from raysft.errors import InputError, did_you_mean
from raysft.objectives.anchored import ASFT
from raysft.objectives.auto import Auto
from raysft.objectives.base import DistributionObjective, Objective, Selection
from raysft.objectives.distribution import DEFT, EAFT, GEM, LabelSmoothing
from raysft.objectives.power import Power
from raysft.objectives.reweighted import DFT, TALR, InfoSFT
from raysft.objectives.shapes import Focal, Huber, LogOneMinusP
from raysft.refusal import refusals

GROUP = "raysft.objectives"
BUILT_IN: tuple[type[Selection], ...] = (
    Power, Auto, LogOneMinusP, Focal, Huber, DFT, TALR, InfoSFT, EAFT, DEFT, GEM, LabelSmoothing, ASFT,
)  # fmt: skip


@cache
def known() -> dict[str, type[Selection]]:
    """Name -> class, built-in and announced. Raises InputError for an announced one that cannot be used."""
    found = {name_of(cls): cls for cls in BUILT_IN}
    for entry in entry_points(group=GROUP):
        if entry.name in found:
            raise InputError(_place(entry), "the name is taken.", "Give the objective another type and entry point.")
        found[entry.name] = _loaded(entry)
    return found


def name_of(cls: type[Selection]) -> str:
    return str(cls.model_fields["type"].default)


def build(name: str, /, **params: Any) -> Objective | DistributionObjective:
    """The objective `name` with its parameters. Raises InputError for an unknown name, parameter or value."""
    place = f"objective '{name}'"
    if name not in known():
        raise InputError(place, "is unknown.", did_you_mean(name, list(known())))
    cls = known()[name]
    try:
        built = cls.model_validate(params)
    except ValidationError as error:
        refusal = refusals(cls, error)[0]
        where = f"{place} {'.'.join(map(str, refusal.loc))}".rstrip()
        raise InputError(where, refusal.reason, refusal.fix) from None
    assert isinstance(built, Objective | DistributionObjective)
    return built


def _loaded(entry: EntryPoint) -> type[Selection]:
    try:
        cls = entry.load()
    except Exception as error:  # whatever another package's import may raise
        raise InputError(_place(entry), f"cannot be imported: {error!r}.", "Mend or uninstall its package.") from error
    if not (isinstance(cls, type) and issubclass(cls, Objective | DistributionObjective)):
        fix = "Derive it from raysft.objectives.Objective or DistributionObjective."
        raise InputError(_place(entry), "is no objective.", fix)
    if name_of(cls) != entry.name:
        fix = f'Write type: Literal["{entry.name}"] = "{entry.name}" in the class.'
        raise InputError(_place(entry), f"its type is '{name_of(cls)}'.", fix)
    return cls


def _place(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name}" if entry.dist else ""
    return f"objective '{entry.name}'{package} ({entry.value})"
