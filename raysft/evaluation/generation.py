"""Completions of prompts, by transformers' own `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig as Decoding
from transformers import LogitsProcessorList, PreTrainedModel

from raysft.backbone import evaluating
from raysft.config import GenerationConfig
from raysft.evaluation.sampling import SeededSampling, uniforms


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    end_ids: list[int],
    pad_id: int,
    seed: int,
    device: torch.device,
    numbers: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """config.samples completions of each prompt: [problem][sample] -> new tokens, the end token the last of them.

    A completion without an end token has config.max_new_tokens tokens. temperature 0 decodes greedily; otherwise a
    completion is drawn by the numbers of its own stream (seed, number of its prompt, sample), so that neither other
    prompts nor batch size nor rank change it, beyond what the round-off of logits in another padding can do; torch's
    random state is not used. numbers: of the prompts; default: their position.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = [(problem, sample) for problem in longest_first for sample in range(config.samples)]
    written: list[list[list[int]]] = [[[] for _ in range(config.samples)] for _ in prompts]
    with evaluating(model), _without_defaults(model):
        for start in range(0, len(rows), config.batch_size):
            batch = rows[start : start + config.batch_size]
            streams = [(seed, numbers[problem], sample) for problem, sample in batch]
            new = _decode(model, [prompts[p] for p, _ in batch], streams, config, end_ids, pad_id, device)
            for (problem, sample), tokens in zip(batch, new, strict=True):
                written[problem][sample] = _to_end(tokens, end_ids)
    return written


def _decode(
    model: Any,
    prompts: list[list[int]],
    streams: list[tuple[int, int, int]],
    config: GenerationConfig,
    end_ids: list[int],
    pad_id: int,
    device: torch.device,
) -> list[list[int]]:
    """One batch: the new tokens of each row, padded behind its end."""
    width = max(map(len, prompts))
    input_ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    processors = LogitsProcessorList()
    if config.temperature > 0:
        drawn = uniforms(streams, config.max_new_tokens).to(device)
        processors.append(SeededSampling(drawn, config.temperature, width))
    decoding = Decoding(
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        use_cache=True,  # the model's own config says no, for training
        eos_token_id=end_ids,
        pad_token_id=pad_id,
    )
    output = model.generate(
        input_ids, attention_mask=mask, generation_config=decoding, logits_processor=processors, synced_gpus=False
    )
    return output[:, width:].tolist()


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """The model's own generation settings (top_k, repetition penalty, ...) fill what a caller leaves open: not here."""
    own = model.generation_config
    model.generation_config = Decoding()
    try:
        yield
    finally:
        model.generation_config = own


def _to_end(tokens: list[int], end_ids: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in end_ids), len(tokens))
    return tokens[: end + 1]
