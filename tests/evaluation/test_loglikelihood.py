"""Log p of options against a float64 log-softmax over one option at a time."""

import json
from typing import Any

import pytest
import torch

from raysft.config import TaskConfig
from raysft.data.sources import Example
from raysft.evaluation import build_scorer
from raysft.evaluation.loglikelihood import longest_option, option_likelihoods
from raysft.trial import Bench

CPU = torch.device("cpu")
OPTIONS = [{"A": "so 3", "B": "seven apples", "C": "5"}, {"A": "9", "B": "1+1"}]
EXAMPLES = [
    Example([{"role": "user", "content": f"{i}+2?"}, {"role": "assistant", "content": "A"}], f"x line {i}", i, options)
    for i, options in enumerate(OPTIONS)
]


def task(**changes: Any) -> TaskConfig:
    source = {"kind": "file", "path": "x.jsonl"}
    return TaskConfig.model_validate({"source": source, "options": "o", "scorer": "loglikelihood", **changes})


def oracle(bench: Bench, prompt: str, option: str) -> float:
    asked, whole = (bench.tokenizer(text, return_tensors="pt")["input_ids"] for text in (prompt, prompt + option))
    model = bench.base.double()
    with torch.no_grad():
        logp = model(input_ids=whole).logits[0].log_softmax(-1)
    bench.base.float()
    start = asked.shape[1]
    return float(sum(logp[at - 1, whole[0, at]] for at in range(start, whole.shape[1])))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("scored", "budget"), [("text", 4096), ("text", 20), ("label", 1)])
def test_likelihoods_are_the_oracles(bench: Bench, packed: bool, scored: str, budget: int) -> None:
    if not packed:
        bench.base.set_attn_implementation("sdpa")
    texts = option_likelihoods(bench.base, bench.tokenizer, EXAMPLES, task(scored_option=scored), "plain", budget, CPU)
    for example, options, text in zip(EXAMPLES, OPTIONS, texts, strict=True):
        found = json.loads(text)
        assert list(found) == list(options)
        for label, option in options.items():
            expected = oracle(bench, example.messages[0]["content"], option if scored == "text" else label)
            assert found[label] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_asked_of_a_rank_without_problems(bench: Bench) -> None:
    assert option_likelihoods(bench.base, bench.tokenizer, [], task(), "plain", 100, CPU) == []


def test_the_longest_option_counts_without_its_end_token(bench: Bench) -> None:
    assert longest_option(bench.tokenizer, EXAMPLES, task(), "plain") == len("0+2?seven apples")


def test_the_likeliest_option_is_chosen_by_sum_or_by_character() -> None:
    example = Example([{"role": "assistant", "content": "B"}], "x line 1", 0, {"A": "no", "B": "a long option"})
    likelihoods = json.dumps({"A": -2.0, "B": -3.0})
    by_sum = build_scorer(task(), task().source).score(likelihoods, example)
    assert (by_sum.score, by_sum.answer, by_sum.others) == (0.0, "A", {"per_character": 1.0})
    config = task(main_score="per_character")
    by_character = build_scorer(config, config.source).score(likelihoods, example)
    assert (by_character.score, by_character.answer, by_character.others) == (1.0, "B", {"sum": 0.0})
