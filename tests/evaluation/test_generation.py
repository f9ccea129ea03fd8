"""Completions against transformers' own decoding, and their independence of batch, order and rank."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as Decoding

from raysft.config import GenerationConfig
from raysft.evaluation.generation import generate
from raysft.evaluation.sampling import SeededSampling, uniforms
from raysft.trial import Bench

CPU = torch.device("cpu")
PROMPTS = ["1+2?", "7+8?9", "0", "3+4?so ", "5+5?"]


def completions(bench: Bench, prompts: list[str], seed: int = 0, numbers: Any = None, **changes: Any) -> Any:
    settings = GenerationConfig(max_new_tokens=12, **changes)
    tokens = [bench.tokenizer(prompt)["input_ids"] for prompt in prompts]
    ends = [bench.tokenizer.eos_token_id]
    return generate(bench.base, tokens, settings, ends, bench.collate.pad_id, seed, CPU, numbers)


def test_greedy_is_the_librarys(bench: Bench) -> None:
    found = completions(bench, PROMPTS, temperature=0, batch_size=3)
    for prompt, (tokens,) in zip(PROMPTS, found, strict=True):
        ids = bench.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        decoding = Decoding(max_new_tokens=12, do_sample=False, eos_token_id=bench.tokenizer.eos_token_id)
        theirs = bench.base.generate(**ids, generation_config=decoding)
        assert tokens == theirs[0, ids["input_ids"].shape[1] :].tolist()


def test_samples_depend_on_seed_problem_and_sample_alone(bench: Bench) -> None:
    whole = completions(bench, PROMPTS, samples=3, batch_size=64)
    assert completions(bench, PROMPTS, samples=3, batch_size=2) == whole
    assert completions(bench, PROMPTS[2:], samples=3, numbers=[2, 3, 4]) == whole[2:]
    assert completions(bench, PROMPTS[::-1], samples=3, numbers=[4, 3, 2, 1, 0]) == whole[::-1]
    assert completions(bench, PROMPTS, seed=1, samples=3) != whole
    assert len({tuple(tokens) for samples in whole for tokens in samples}) > len(PROMPTS)


def test_nothing_else_changes(bench: Bench) -> None:
    """Not torch's random state, the model's mode or its settings; and those settings have no part in it."""
    before = completions(bench, PROMPTS)
    bench.base.generation_config.top_k, bench.base.generation_config.repetition_penalty = 1, 9.0
    bench.base.train()
    state = torch.get_rng_state()
    assert completions(bench, PROMPTS) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert bench.base.training
    assert bench.base.generation_config.top_k == 1


def test_completions_end_with_the_end_token_or_at_the_limit(bench: Bench) -> None:
    for samples in completions(bench, PROMPTS, samples=20):
        for tokens in samples:
            ends = [i for i, token in enumerate(tokens) if token == bench.tokenizer.eos_token_id]
            assert ends == [len(tokens) - 1] or (not ends and len(tokens) == 12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax(temperature: float) -> None:
    """Shares of 40,000 draws within five standard errors of softmax(scores / temperature)."""
    rows = 40_000
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    drawn = uniforms([(0, row, 0) for row in range(rows)], 1)
    process = SeededSampling(drawn, temperature, prompt_length=3)
    taken = process(torch.zeros(rows, 3, dtype=torch.long), scores.expand(rows, -1)).argmax(dim=-1)
    shares = torch.bincount(taken, minlength=5) / rows
    expected = (scores / temperature).softmax(-1)
    assert torch.all((shares - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt())


def test_streams_are_their_own() -> None:
    streams = list(product(range(3), range(3), range(3)))
    numbers = uniforms(streams, 8).numpy()
    assert len(np.unique(numbers)) == numbers.size
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.array_equal(uniforms(streams[5:6], 4).numpy()[0], numbers[5, :4])
