"""The score that a reasoning-gym task gives an answer itself, partial credit included."""

from functools import lru_cache
from typing import Any

from raysft.config import ReasoningGymSource
from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation.scorers import Scored, Scorer, register


@register("reasoning_gym")
class ReasoningGym(Scorer):
    def check(self, example: Example) -> None:
        if not isinstance(self.source, ReasoningGymSource):
            raise InputError(
                example.origin,
                "is not of a reasoning-gym task.",
                "Use another scorer, or other data.",
            )
        if str(self._entry(example)["answer"]) != example.response:
            raise InputError(
                example.origin,
                "the task generates another answer now than when the data were read.",
                "Remove the cached data, or install the version of reasoning-gym that they were made with.",
            )

    def score(self, completion: str, example: Example) -> Scored:
        answer = self.answer(completion)
        if answer is None:
            return Scored(0.0, None)
        entry = self._entry(example)
        try:
            score = float(_task(self.source.model_dump_json()).score_answer(answer, entry))
        except Exception:  # tasks parse answers in many ways, and some fall over one that is none
            return Scored(0.0, answer)
        return Scored(min(1.0, max(0.0, score)), answer)

    def _entry(self, example: Example) -> dict[str, Any]:
        return _entry(self.source.model_dump_json(), example.index)


@lru_cache(maxsize=4)
def _task(source: str) -> Any:
    import reasoning_gym

    task = ReasoningGymSource.model_validate_json(source)
    return reasoning_gym.create_dataset(task.task, size=task.size, seed=task.seed, **task.params)


@lru_cache(maxsize=100_000)
def _entry(source: str, index: int) -> dict[str, Any]:
    """Generating one can take longer than a model's answer to it, and every trial asks for the same ones."""
    return _task(source)[index]
