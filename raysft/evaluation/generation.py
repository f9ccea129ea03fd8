"""Completions of prompts, whatever engine writes them."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from raysft.config import GenerationConfig
from raysft.evaluation.decoding import decode, why_not
from raysft.evaluation.stock import stock_decode
from raysft.evaluation.writing import Asked, Completion, Engine, Progress, Row


def complete(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    end_ids: list[int],
    pad_id: int,
    seed: int,
    device: torch.device,
    numbers: Sequence[int] | None = None,
    *,
    text: Callable[[list[int]], str] | None = None,
    progress: Progress = lambda done, total: None,
    engine: Engine | None = None,
) -> list[list[Completion]]:
    """config.samples completions of each prompt: [problem][sample].

    temperature 0 decodes greedily; otherwise a completion is drawn by the numbers of its own stream (seed, number of
    its prompt, sample), so that neither other prompts nor batch size nor rank change it, beyond what the round-off of
    logits in another batch can do; torch's random state is not used. numbers: of the prompts; default: their position.
    text: the text of tokens, needed where config.stop is set; progress: is told how many completions are done, of how
    many; engine: default the fastest that fits the model.

    Raises ValueError for an empty prompt, and for stop strings without `text`.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    if config.stop and text is None:
        raise ValueError("stop strings are looked for in the text: give `text`, the tokenizer's decode")
    if not all(prompts):
        raise ValueError(f"prompt {[len(p) for p in prompts].index(0)} has no token to go on from")
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows = [Row(i, sample, (seed, numbers[i], sample)) for i in longest_first for sample in range(config.samples)]
    asked = Asked(prompts, rows, config, frozenset(end_ids), pad_id, device, text, progress)
    if engine is None:
        engine = decode if why_not(model) is None else stock_decode
    written: list[list[Completion]] = [[] for _ in prompts]
    for row, completion in zip(rows, engine(model, asked), strict=True):
        written[row.problem].append(completion)
    return written


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
    """The tokens of `complete`: [problem][sample] -> new tokens, the end token the last of them."""
    written = complete(model, prompts, config, end_ids, pad_id, seed, device, numbers)
    return [[completion.tokens for completion in completions] for completions in written]
