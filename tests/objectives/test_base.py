"""Objectives by name: what is refused, and how it is worded."""

import pytest

from raysft.errors import InputError
from raysft.objectives import Power, build


def test_builds_by_name() -> None:
    assert build("power") == Power(exponent=0.0, threshold=None, keep="above")
    assert build("power", exponent=-0.5, threshold=0.2, keep="below") == Power(-0.5, 0.2, "below")


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("powr", {}, "objective 'powr': is unknown. Did you mean 'power'?"),
        ("", {}, "Valid: power."),
        ("power", {"exponet": 1}, "objective 'power': has no parameter 'exponet'. Did you mean 'exponent'?"),
        ("power", {"zzz": 1}, "Valid: exponent, keep, threshold."),
        ("power", {"self": 1}, "has no parameter 'self'."),
        ("power", {"exponent": float("nan")}, "exponent is nan. Give a finite number."),
        ("power", {"exponent": float("inf")}, "exponent is inf."),
        ("power", {"exponent": "2"}, "refuses its parameters: must be real number, not str."),
        ("power", {"exponent": None}, "refuses its parameters:"),
        ("power", {"threshold": -0.1}, "threshold is -0.1. Give a probability in [0, 1]."),
        ("power", {"threshold": 1.0001}, "threshold is 1.0001."),
        ("power", {"threshold": float("nan")}, "threshold is nan."),
        ("power", {"threshold": "half"}, "refuses its parameters:"),
        ("power", {"threshold": 0.2, "keep": "abov"}, "keep is 'abov'. Give 'above' or 'below'."),
    ],
)
def test_refuses_with_the_nearest_valid_name(name: str, params: dict, told: str) -> None:
    with pytest.raises(InputError) as refused:
        build(name, **params)
    assert told in str(refused.value)
