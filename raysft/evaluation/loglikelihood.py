"""Multiple choice without generating: the option that the model finds likeliest after the question."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysft.backbone import collate, evaluating, token_logp
from raysft.config import SCORES, GenerationConfig, Source, TaskConfig, Template
from raysft.data.batch import Sample
from raysft.data.packing import deal
from raysft.data.render import render_all
from raysft.data.sources import Example
from raysft.evaluation.options import check_options
from raysft.evaluation.scorers import Scored, Scorer, register
from raysft.objectives import IGNORE_INDEX


@register("loglikelihood")
class LogLikelihood(Scorer):
    """1 where the likeliest option is the right one. What stands for a completion is the options' log p, as JSON.

    sum: log p of the option; per_character: divided by the characters of its text, which long options need. main_score
    picks the one that counts. Of equal options the first is taken.
    """

    def __init__(self, config: GenerationConfig, source: Source) -> None:
        super().__init__(config, source)
        self.main = config.main_score or SCORES["loglikelihood"][0]

    def check(self, example: Example) -> None:
        check_options(example)

    def score(self, completion: str, example: Example) -> Scored:
        likelihoods: dict[str, float] = json.loads(completion)
        options = example.options or {}
        chosen = {
            "sum": max(likelihoods, key=lambda label: likelihoods[label]),
            "per_character": max(likelihoods, key=lambda label: likelihoods[label] / max(1, len(options[label]))),
        }
        scores = {name: float(label == example.response) for name, label in chosen.items()}
        return Scored(scores.pop(self.main), chosen[self.main], self.main, scores)


@torch.no_grad()
def option_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    task: TaskConfig,
    template: Template,
    budget: int,
    device: torch.device,
) -> list[str]:
    """Of each problem, {label: log p in nats of the option after the question}, as JSON. budget: tokens of a batch."""
    samples = list(chain.from_iterable(_samples(tokenizer, examples, task, template)))
    if not samples:
        return []
    make = collate(model, tokenizer)
    lengths = np.array([len(tokens) for tokens, _ in samples])
    (batches,) = deal(lengths, budget, padded=not make.packed)
    sums = np.empty(len(samples))
    with evaluating(model):
        for batch in batches:
            chosen = [samples[int(i)] for i in batch]
            logp = token_logp(model, make(chosen).to(device)).double().cpu().numpy()
            counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in chosen]
            sums[batch] = [part.sum() for part in np.split(logp, np.cumsum(counts)[:-1])]
    values = iter(sums.tolist())
    return [json.dumps({label: next(values) for label in example.options or {}}) for example in examples]


def longest_option(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: TaskConfig, template: Template
) -> int:
    """Tokens of the longest question with one of its options."""
    samples = chain.from_iterable(_samples(tokenizer, examples, task, template))
    return max(len(tokens) for tokens, _ in samples)


def _samples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], task: TaskConfig, template: Template
) -> list[list[Sample]]:
    """Of each problem, a sample for each option: its tokens are the labels, the end token aside."""
    found = []
    for example in examples:
        options = example.options or {}
        texts = options.values() if task.scored_option == "text" else options.keys()
        answers = [
            replace(example, messages=[*example.prompt_messages, {"role": "assistant", "content": text}])
            for text in texts
        ]
        found.append([_sample(tokens, mask) for tokens, mask in render_all(answers, tokenizer, template)])
    return found


def _sample(tokens: list[int], supervised: list[bool]) -> Sample:
    """A response is rendered with its end token, which no option is judged by."""
    ids = np.array(tokens[:-1], dtype=np.int64)
    return ids, np.where(supervised[:-1], ids, IGNORE_INDEX)
