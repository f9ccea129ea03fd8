"""How close a word is to the one that a picture shows."""

from rapidfuzz.distance import JaroWinkler

from raysft.config import SCORES, GenerationConfig, Source
from raysft.data.sources import Example
from raysft.evaluation.scorers import Scored, Scorer, register


@register("figlet")
class Figlet(Scorer):
    """The word itself, the word in any case, and the Jaro-Winkler similarity in any case; main_score picks one."""

    def __init__(self, config: GenerationConfig, source: Source) -> None:
        super().__init__(config, source)
        self.main = config.main_score or SCORES["figlet"][0]

    def check(self, example: Example) -> None:
        self.reference(example)

    def score(self, completion: str, example: Example) -> Scored:
        answer, word = self.answer(completion), self.reference(example)
        scores = similarities(answer or "", word)
        return Scored(scores.pop(self.main), answer, others=scores)


def similarities(answer: str, word: str) -> dict[str, float]:
    low, right = answer.lower(), word.lower()
    return {
        "exact": float(answer == word),
        "case_insensitive": float(low == right),
        "jaro_winkler": JaroWinkler.normalized_similarity(low, right) if low and right else float(low == right),
    }
