"""Our own decoding against transformers' own `generate`, over architectures; and which ones it does not fit."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import GenerationConfig as Decoding

from raysft.backbone import pack
from raysft.config import GenerationConfig
from raysft.evaluation.decoding import decode, why_not
from raysft.evaluation.generation import complete
from raysft.evaluation.keyvalues import KeyValues
from raysft.evaluation.stock import stock_decode
from raysft.quiet import libraries_quiet

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 46,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that one token is clearly the likeliest
}
HEADED = {**SHAPE, "head_dim": 8}
PLAIN = {"vocab_size": 46, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
GPT2 = {"vocab_size": 46, "n_embd": 32, "n_layer": 2, "n_head": 4, "eos_token_id": 1, "initializer_range": 0.3}

# A window of 4 is shorter than most prompts, and than every completion.
FITTING = [
    (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    (Qwen3ForCausalLM, Qwen3Config(**HEADED)),
    (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=4)),
    (Phi3ForCausalLM, Phi3Config(**SHAPE)),
    (GPT2LMHeadModel, GPT2Config(**GPT2)),
    (Gemma2ForCausalLM, Gemma2Config(**HEADED, sliding_window=4, attn_logit_softcapping=0.5)),
    (Gemma3ForCausalLM, Gemma3TextConfig(**HEADED, sliding_window=4)),
    (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.25)),
    (Cohere2ForCausalLM, Cohere2Config(**SHAPE, sliding_window=4)),
    (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=3.0)),
]
OTHERS = [
    (MambaForCausalLM, MambaConfig(**PLAIN), "layers of another kind (linear"),
    (BloomForCausalLM, BloomConfig(**PLAIN, n_head=4), "attention be chosen"),
    (GptOssForCausalLM, GptOssConfig(**HEADED, num_local_experts=4), "are not those of the whole sequence"),
    (Llama4ForCausalLM, Llama4TextConfig(**HEADED, intermediate_size_mlp=64), "layers of another kind (chunked"),
]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    libraries_quiet()


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else ""


def made(model: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    built = model(deepcopy(config)).eval()
    built.config.use_cache = False
    return built


def prompts() -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(2, 46, (n,)).tolist() for n in (3, 9, 1, 5, 7, 6, 2)]


def theirs(model: PreTrainedModel, prompt: list[int], ends: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    decoding = Decoding(max_new_tokens=14, do_sample=False, use_cache=True, eos_token_id=ends, pad_token_id=0)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=decoding)
    return written[0, len(prompt) :].tolist()


def greedy(model: PreTrainedModel, ends: list[int], **more: Any) -> list[list[int]]:
    settings = GenerationConfig(temperature=0, max_new_tokens=14, batch_size=3)
    return [completion.tokens for (completion,) in complete(model, prompts(), settings, ends, 0, 0, CPU, **more)]


@pytest.mark.parametrize("packing", [False, True], ids=["own-attention", "ours"])
@pytest.mark.parametrize(("model", "config"), FITTING, ids=name_of)
def test_greedy_is_the_librarys(model: type[PreTrainedModel], config: Any, packing: bool) -> None:
    """Some rows end early, others come in their places, and prompts are of many lengths."""
    before = made(model, config)
    ours = deepcopy(before)
    attention = ours.config._attn_implementation
    if packing:
        assert pack(ours) is None
    assert why_not(ours) is None
    ends = [theirs(before, prompts()[1], [])[4], theirs(before, prompts()[3], [])[1]]
    expected = [theirs(before, prompt, ends) for prompt in prompts()]
    assert min(map(len, expected)) < max(map(len, expected))
    assert greedy(ours, ends, engine=decode) == expected
    assert packing or ours.config._attn_implementation == attention


@pytest.mark.parametrize(("model", "config", "reason"), OTHERS, ids=name_of)
def test_what_does_not_fit_is_written_by_the_library(model: type[PreTrainedModel], config: Any, reason: str) -> None:
    built = made(model, config)
    assert reason in str(why_not(built))
    ends = [theirs(built, prompts()[1], [])[4]]
    assert greedy(built, ends) == greedy(built, ends, engine=stock_decode)
    assert greedy(built, ends)[2] == theirs(built, prompts()[2], ends)  # a batch of its own length


def test_a_wrong_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an architecture would have it that numbers its tokens in its own way."""
    model = made(LlamaForCausalLM, LlamaConfig(**SHAPE))
    positions = KeyValues.positions
    monkeypatch.setattr(KeyValues, "positions", property(lambda memory: positions.fget(memory) + 1))  # type: ignore[misc]
    assert "not those of the whole sequence" in str(why_not(model))


@pytest.fixture
def fed() -> Iterator[tuple[PreTrainedModel, Counter[str]]]:
    """A model, and how many tokens went through it: of prompts and of steps."""
    model, tokens = made(LlamaForCausalLM, LlamaConfig(**SHAPE)), Counter[str]()

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: Any) -> None:
        tokens["steps" if inputs[0].shape[1] == 1 else "prompts"] += inputs[0].numel()

    handle = model.get_input_embeddings().register_forward_hook(count)  # type: ignore[union-attr]
    yield model, tokens
    handle.remove()


@pytest.mark.parametrize("batch_size", [3, 4, 64])
def test_prompts_are_read_once_and_ended_rows_are_dropped(
    fed: tuple[PreTrainedModel, Counter[str]], batch_size: int
) -> None:
    """At fewer than 16 rows, one leaves as soon as it has ended."""
    model, tokens = fed
    settings = GenerationConfig(samples=2, max_new_tokens=14, batch_size=batch_size)
    written = complete(model, prompts(), settings, [5, 6, 7, 8], 0, 0, CPU, engine=decode)
    lengths = [len(completion.tokens) for completions in written for completion in completions]
    assert len(set(lengths)) > 3
    longer = [prompt for prompt in prompts() if len(prompt) > 1]  # that of one token counts among the steps
    assert tokens["prompts"] >= sum(map(len, longer))
    assert tokens["prompts"] + tokens["steps"] == sum(map(len, prompts())) + sum(lengths) - len(lengths)


def test_long_prompts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(LlamaForCausalLM, LlamaConfig(**SHAPE))
    settings = GenerationConfig(samples=2, max_new_tokens=6)
    whole = complete(model, prompts(), settings, [5], 0, 0, CPU, engine=decode)
    monkeypatch.setattr("raysft.evaluation.decoding.PROMPT_TOKENS", 8)
    parts = complete(model, prompts(), settings, [5], 0, 0, CPU, engine=decode)
    assert [[c.tokens for c in of] for of in parts] == [[c.tokens for c in of] for of in whole]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_other_precisions_write_too(precision: torch.dtype) -> None:
    """In bf16 the library's choice is ours until the first near tie; in float64 always."""
    model = made(LlamaForCausalLM, LlamaConfig(**SHAPE)).to(precision)
    assert why_not(model) is None
    ours, library = greedy(model, [1], engine=decode), greedy(model, [1], engine=stock_decode)
    first = [a[0] == b[0] for a, b in zip(ours, library, strict=True)]
    assert sum(first) >= 6
    assert precision == torch.bfloat16 or ours == library
