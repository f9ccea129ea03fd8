"""Generation accuracy: avg@k over held-out problems, with every completion kept."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysft.config import GenerationConfig, SweepConfig
from raysft.data.render import end_token_ids, render_prompt
from raysft.data.sources import Example
from raysft.data.tokenized import TokenizedData
from raysft.errors import InputError
from raysft.evaluation.forward import spread
from raysft.evaluation.generation import generate
from raysft.evaluation.records import Record
from raysft.evaluation.scorers import Scorer, build_scorer, check_references
from raysft.ranks import Ranks


@dataclass(frozen=True)
class Problems:
    """Held-out problems that can be scored. numbers: their positions in the held-out data."""

    scorer: Scorer
    numbers: list[int]
    examples: list[Example]
    prompts: list[list[int]]
    end_ids: list[int]


def load_problems(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heldout: TokenizedData, config: SweepConfig
) -> Problems | None:
    """The problems of evaluation.generation, at an even stride over the held-out data; None where it is null.

    Raises InputError for a reference that cannot be scored against, and where prompt and completion do not fit the
    model. Nothing is generated, so this is also the check before training.
    """
    generation = config.evaluation.generation
    if generation is None:
        return None
    scorer = build_scorer(generation, config.data.heldout or config.data.train)
    numbers = spread(len(heldout), generation.problems)
    examples = [heldout.examples[i] for i in numbers]
    check_references(scorer, examples)
    prompts = [render_prompt(example, tokenizer, config.data.template) for example in examples]
    _check_room(model, prompts, generation)
    return Problems(scorer, numbers, examples, prompts, end_token_ids(tokenizer, config.data.template))


def _check_room(model: PreTrainedModel, prompts: list[list[int]], generation: GenerationConfig) -> None:
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if room is not None and longest + generation.max_new_tokens > room:
        raise InputError(
            "evaluation.generation.max_new_tokens",
            f"{generation.max_new_tokens} new tokens after the longest prompt ({longest}) exceed the model's "
            f"{room} positions.",
            f"Set it to at most {room - longest}." if room > longest else "Lower data.max_length.",
        )


def generation_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    generation: GenerationConfig,
    pad_id: int,
    ranks: Ranks,
    device: torch.device,
    seed: int,
) -> tuple[dict[str, float], list[Record]]:
    """Metrics and records, the same and complete on every rank. Collective.

    Problems are dealt to the ranks. A completion is a function of (seed, problem, sample), so that the number of ranks
    changes it no more than the batch size does: by the round-off of logits.
    """
    at = ranks.share(list(range(len(problems.numbers))))
    numbers = [problems.numbers[i] for i in at]
    prompts = [problems.prompts[i] for i in at]
    written = generate(model, prompts, generation, problems.end_ids, pad_id, seed, device, numbers)
    mine = [
        _record(tokenizer, problems, i, sample, tokens)
        for i, completions in zip(at, written, strict=True)
        for sample, tokens in enumerate(completions)
    ]
    records = [record for part in ranks.gather(mine) for record in part]
    records.sort(key=lambda record: (record["problem"], record["sample"]))
    return _summary(records), records


def _record(
    tokenizer: PreTrainedTokenizerBase, problems: Problems, i: int, sample: int, tokens: Sequence[int]
) -> Record:
    example = problems.examples[i]
    ended = tokens[-1] in problems.end_ids
    completion = _text(tokenizer, tokens[:-1] if ended else tokens, skip_special_tokens=True)
    scored = problems.scorer.score(completion, example)
    return {
        "problem": problems.numbers[i],
        "sample": sample,
        "origin": example.origin,
        "prompt": _text(tokenizer, problems.prompts[i], skip_special_tokens=False),
        "reference": example.response,
        "completion": completion,
        "answer": scored.answer,
        "score": scored.score,
        "tokens": len(tokens),
        "truncated": not ended,
    }


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], skip_special_tokens: bool) -> str:
    # Cleaning up would take spaces out that the model wrote and the reference has.
    text = tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return str(text)


def _summary(records: list[Record]) -> dict[str, float]:
    """Means over problems of means over their samples; samples of one problem are one cluster of the standard error.

    eval/accuracy_se is left out for a single problem, which has none.
    """
    by_problem = groupby(records, key=lambda record: record["problem"])
    scores = [statistics.fmean(record["score"] for record in samples) for _, samples in by_problem]
    metrics = {
        "eval/accuracy": statistics.fmean(scores),
        "eval/generated_tokens": statistics.fmean(record["tokens"] for record in records),
        "eval/truncated": statistics.fmean(record["truncated"] for record in records),
    }
    if len(scores) > 1:
        metrics["eval/accuracy_se"] = statistics.stdev(scores) / len(scores) ** 0.5
    return metrics
