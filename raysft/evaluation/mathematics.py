"""Mathematical equality of the answer: 1/2 is \\frac{1}{2} is 0.5, by math-verify."""

import re
from collections.abc import Sequence

from raysft.data.problems import last_match
from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation.boxed import last_boxed
from raysft.evaluation.pool import Question, verdicts
from raysft.evaluation.scorers import Scored, Scorer, register, scored
from raysft.mathjudge import plain

NUMBER = r"(?:(?<![\w)\]}])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|(?<!\d)\.\d+)"
# Where there is no box: what is said to be the answer (as LaTeX, a number, a line), else the last number.
FALLBACK = [
    r"(?i)answer(?: is|:)[\s:*]*(?:\$\$?|\\[(\[])\s*([^$\n]+?)\s*(?:\$|\\[)\]])",
    rf"(?i)answer(?: is|:)[\s:*]*\\?\$?((?>{NUMBER}(?:/\d+)?))(?!\s*[-+*/=^×]\s*\\?\$?\d)",  # 40 of 40 + 70 is none
    r"(?im)answer(?: is|:)[\s:*]*([^\n]{1,40}?)\.?\s*$",
    NUMBER,
]


@register("math")
class Mathematics(Scorer):
    """1 where the answer's value is the reference's, else 0. how: boxed, pattern, or timeout (which scores 0)."""

    def check(self, example: Example) -> None:
        if not plain(self.reference(example)):
            raise InputError(example.origin, "has no reference to compare with.", "Remove the problem, or fill it in.")

    def reference(self, example: Example) -> str:
        return last_boxed(example.response) or example.response.strip()

    def answer(self, text: str) -> str | None:
        return self._found(text)[0]

    def score(self, completion: str, example: Example) -> Scored:
        return self.score_all([completion], [example])[0]

    def score_all(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Scored]:
        found = [self._found(completion) for completion in completions]
        questions: list[Question] = [
            (self.reference(example), answer, self.config.tolerance)
            for example, (answer, _) in zip(examples, found, strict=True)
            if answer is not None
        ]
        judged = iter(verdicts("raysft.mathjudge", questions, self.config.timeout))
        return [scored(answer, how, next(judged)) if answer is not None else Scored(0.0, None) for answer, how in found]

    def _found(self, text: str) -> tuple[str | None, str]:
        """The answer, and how it was found."""
        if (boxed := last_boxed(text)) is not None:
            return boxed, "boxed"
        patterns = self.patterns if self.config.answer_pattern is not None else map(re.compile, FALLBACK)
        return next((found for pattern in patterns if (found := last_match(pattern, text))), None), "pattern"
