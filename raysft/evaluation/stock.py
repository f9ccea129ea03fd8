"""Completions by transformers' own `generate`: the oracle, and the way of models that our own decoding does not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig as Decoding
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from raysft.backbone import evaluating
from raysft.evaluation.writing import Asked, Completion, Row, Writing, write_next


@torch.no_grad()
def stock_decode(model: PreTrainedModel, asked: Asked) -> list[Completion]:
    """An Engine, for every causal language model. Rows are padded, and read each prompt anew."""
    completions: list[Completion] = []
    with evaluating(model), _without_defaults(model):
        for start in range(0, len(asked.rows), asked.config.batch_size):
            completions += _batch(model, asked, asked.rows[start : start + asked.config.batch_size])
            asked.progress(len(completions), len(asked.rows))
    return completions


def _batch(model: Any, asked: Asked, rows: list[Row]) -> list[Completion]:
    prompts = [asked.prompts[row.problem] for row in rows]
    width = max(map(len, prompts))
    input_ids = torch.tensor([[asked.pad_id] * (width - len(p)) + p for p in prompts], device=asked.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=asked.device)
    writings = asked.begin(rows)
    decoding = Decoding(
        max_new_tokens=asked.config.max_new_tokens,
        do_sample=False,
        use_cache=True,  # the model's own config says no, for training
        pad_token_id=asked.pad_id,
    )
    model.generate(
        input_ids,
        attention_mask=mask,
        generation_config=decoding,
        logits_processor=LogitsProcessorList([_Taking(writings)]),
        stopping_criteria=StoppingCriteriaList([_Ended(writings)]),
        synced_gpus=False,
    )
    return [writing.completion() for writing in writings]


class _Taking(LogitsProcessor):
    """Draws each row's token and leaves no other for greedy decoding to take."""

    def __init__(self, writings: list[Writing]) -> None:
        self.writings = writings

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = write_next(self.writings, scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


class _Ended(StoppingCriteria):
    def __init__(self, writings: list[Writing]) -> None:
        self.writings = writings

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([w.end is not None for w in self.writings], device=input_ids.device)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """The model's own generation settings (top_k, repetition penalty, ...) fill what a caller leaves open: not here."""
    own = model.generation_config
    model.generation_config = Decoding()
    try:
        yield
    finally:
        model.generation_config = own
