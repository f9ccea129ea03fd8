"""Equality of the last number: 1,234.0 is 1234, $5 is 5, 50% is 50."""

import re
from decimal import Decimal

from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation.scorers import Scored, Scorer, register, shortened

NUMBER = re.compile(
    r"""
    (?: \\? \$ [ ]? [-−]                               # dollars, also as LaTeX writes them, before a sign
      | (?: (?<![\w.)\]}]) [-+−] )? (?: \\? \$ [ ]? )?  # or behind it; the minus of a difference is none
    )
    (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9]) (?: \.[0-9]+ )?
      | [0-9]+ (?: \.[0-9]+ )?
      | (?<![0-9]) \.[0-9]+
    )
    (?: [eE] [-+]? [0-9]{1,3} (?![0-9]) )?
    """,
    re.VERBOSE,
)


def last_number(text: str) -> str | None:
    """The last number as it is written."""
    found = NUMBER.findall(text)
    return found[-1] if found else None


def value(number: str) -> Decimal:
    """The value of what `last_number` found."""
    return Decimal(re.sub(r"[,$\\ ]", "", number.replace("−", "-")))


@register("numeric")
class Numeric(Scorer):
    """1 where the last number of the completion's answer is that of the reference's, exactly; 0 elsewhere."""

    def check(self, example: Example) -> None:
        self._expected(example)

    def score(self, completion: str, example: Example) -> Scored:
        answer = self.answer(completion)
        number = last_number(answer) if answer is not None else None
        if number is None:
            return Scored(0.0, None)
        return Scored(float(value(number) == value(self._expected(example))), number)

    def _expected(self, example: Example) -> str:
        reference = self.reference(example)
        number = last_number(reference)
        if number is None:
            raise InputError(
                example.origin,
                f"the reference '{shortened(reference)}' holds no number.",
                "Use the scorer exact_match, or an answer_pattern that finds the number.",
            )
        return number
