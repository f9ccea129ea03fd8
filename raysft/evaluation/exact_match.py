"""Exact match of the answer's text."""

from raysft.data.sources import Example
from raysft.evaluation.scorers import Scored, Scorer, register


@register("exact_match")
class ExactMatch(Scorer):
    """1 where the completion's answer is the reference's, surrounding white space aside; 0 elsewhere."""

    def check(self, example: Example) -> None:
        self.reference(example)

    def score(self, completion: str, example: Example) -> Scored:
        answer = self.answer(completion)
        return Scored(float(answer == self.reference(example)), answer)
