"""The score that a reasoning-gym task gives an answer itself, partial credit included."""

from collections.abc import Sequence

from raysft.config import ReasoningGymSource
from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation.pool import verdicts
from raysft.evaluation.scorers import Scored, Scorer, register, scored
from raysft.gymjudge import entry


@register("reasoning_gym")
class ReasoningGym(Scorer):
    def check(self, example: Example) -> None:
        if not isinstance(self.source, ReasoningGymSource):
            raise InputError(
                example.origin,
                "is not of a reasoning-gym task.",
                "Use another scorer, or other data.",
            )
        if str(entry(self._source, example.index)["answer"]) != example.response:
            raise InputError(
                example.origin,
                "the task generates another answer now than when the data were read.",
                "Remove the cached data, or install the version of reasoning-gym that they were made with.",
            )

    def score(self, completion: str, example: Example) -> Scored:
        return self.score_all([completion], [example])[0]

    def score_all(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Scored]:
        answers = [self.answer(completion) for completion in completions]
        asked = zip(examples, answers, strict=True)
        questions = [(self._source, example.index, answer) for example, answer in asked if answer is not None]
        judged = iter(verdicts("raysft.gymjudge", questions, self.config.timeout))
        return [scored(answer, "", next(judged)) if answer is not None else Scored(0.0, None) for answer in answers]

    @property
    def _source(self) -> str:
        return self.source.model_dump_json()
