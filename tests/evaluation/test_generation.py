"""Completions whatever engine writes them: their independence of batch, order and rank, and when they end."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig as Decoding

from raysft.config import GenerationConfig
from raysft.evaluation.decoding import decode
from raysft.evaluation.generation import complete, generate
from raysft.evaluation.stock import stock_decode
from raysft.evaluation.writing import Completion, Engine, cut
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


# --- both engines ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[decode, stock_decode], ids=["own", "stock"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param


def written(bench: Bench, engine: Engine, settings: dict[str, Any], **more: Any) -> list[Completion]:
    """Of all prompts, one behind the other."""
    tokens = [bench.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    config, ends = GenerationConfig(**{"max_new_tokens": 12} | settings), [bench.tokenizer.eos_token_id]
    found = complete(bench.base, tokens, config, ends, bench.collate.pad_id, 0, CPU, engine=engine, **more)
    return [completion for completions in found for completion in completions]


def text(bench: Bench, tokens: list[int]) -> str:
    return str(bench.tokenizer.decode(tokens))


def test_engines_write_the_same(bench: Bench) -> None:
    ours, theirs = (written(bench, engine, {"samples": 3}) for engine in (decode, stock_decode))
    for own, other in zip(ours, theirs, strict=True):
        assert (own.tokens, own.end) == (other.tokens, other.end)
        assert own.entropy == pytest.approx(other.entropy, rel=1e-5)


@pytest.mark.parametrize("temperature", [0, 0.5, 2.0])
def test_the_entropy_is_that_of_what_was_sampled(bench: Bench, engine: Engine, temperature: float) -> None:
    found = written(bench, engine, {"temperature": temperature})
    model = bench.base.double()
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = bench.tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + completion.tokens])).logits[0, len(ids) - 1 : -1]
        logp = (logits / (temperature or 1)).log_softmax(-1)
        assert completion.entropy == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean()), rel=1e-5)
    bench.base.float()


def test_a_completion_ends_at_a_stop_string(bench: Bench, engine: Engine) -> None:
    """With the token that completes it; the text up to it is that of the unstopped completion."""
    whole = written(bench, engine, {"samples": 4, "max_new_tokens": 40})
    texts = [text(bench, completion.tokens) for completion in whole]
    stop = [texts[0][8:10], texts[5][3:5]]
    found = written(
        bench, engine, {"samples": 4, "max_new_tokens": 40, "stop": stop}, text=lambda tokens: text(bench, tokens)
    )
    for completion, before in zip(found, texts, strict=True):
        kept, stopped = cut(before, stop)
        after = text(bench, completion.tokens)
        assert cut(after, stop) == (kept, stopped)
        assert (completion.end == "stop") == stopped
        assert not (stopped and completion.truncated)
        assert after == before[: len(kept) + 2] if stopped else after == before
    assert [c.end for c in found].count("stop") >= 2


def test_what_takes_too_long_is_cut_as_truncated(bench: Bench, engine: Engine) -> None:
    for completion in written(bench, engine, {"samples": 2, "seconds": 1e-9}):
        assert len(completion.tokens) == 1
        assert completion.end in ("time", "token")
        assert completion.truncated == (completion.end == "time")
    assert written(bench, engine, {"samples": 2, "seconds": 1e6}) == written(bench, engine, {"samples": 2})


def test_progress_is_told(bench: Bench, engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    written(bench, engine, {"samples": 3, "batch_size": 4}, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (15, 15)
    assert len(set(told)) > 2


def test_what_cannot_be_asked_is_refused(bench: Bench, engine: Engine) -> None:
    with pytest.raises(ValueError, match="give `text`"):
        written(bench, engine, {"stop": ["x"]})
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        complete(bench.base, [[1], []], GenerationConfig(), [2], 0, 0, CPU, engine=engine)


def test_no_prompts_give_no_completions(bench: Bench, engine: Engine) -> None:
    assert complete(bench.base, [], GenerationConfig(), [2], 0, 0, CPU, engine=engine) == []


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], ("a#b##c", False)),
        (["x"], ("a#b##c", False)),
        (["##"], ("a#b", True)),
        (["##", "#b", "c"], ("a", True)),
        (["a"], ("", True)),
    ],
)
def test_cut(stop: list[str], expected: tuple[str, bool]) -> None:
    assert cut("a#b##c", stop) == expected
