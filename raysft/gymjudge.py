"""The score that a reasoning-gym task gives an answer; and the process that `raysft.evaluation.pool` asks for it."""

from functools import lru_cache
from typing import Any

from raysft.config import ReasoningGymSource
from raysft.judging import serve


def judge(source: str, index: int, answer: str) -> float:
    """source: a ReasoningGymSource as JSON. In [0, 1], partial credit included. Raises whatever the task does."""
    score = float(_task(source).score_answer(answer, entry(source, index)))
    return min(1.0, max(0.0, score))


@lru_cache(maxsize=4)
def _task(source: str) -> Any:
    import reasoning_gym

    task = ReasoningGymSource.model_validate_json(source)
    return reasoning_gym.create_dataset(task.task, size=task.size, seed=task.seed, **task.params)


@lru_cache(maxsize=100_000)
def entry(source: str, index: int) -> dict[str, Any]:
    """Generating one can take longer than a model's answer to it, and every trial asks for the same ones."""
    return _task(source)[index]


def main() -> None:
    simple = ReasoningGymSource(kind="reasoning_gym", task="chain_sum", size=1)
    serve(judge, simple.model_dump_json(), 0, "0")
