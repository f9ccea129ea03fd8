"""What a model answers to problems, and how much of it is right: avg@k, pass@k, every answer kept as a record."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysft.config import GenerationConfig, SweepConfig, TaskConfig, Template, config_hash
from raysft.data.problems import Part, part_of, spread, task_examples
from raysft.data.render import end_token_ids, render_prompt
from raysft.data.sources import Example
from raysft.data.tokenized import TokenizedData
from raysft.errors import InputError
from raysft.evaluation.generation import complete
from raysft.evaluation.loglikelihood import longest_option, option_likelihoods
from raysft.evaluation.pool import TIMEOUT
from raysft.evaluation.repetition import repetition
from raysft.evaluation.scorers import Scored, Scorer, build_scorer, check_references
from raysft.evaluation.writing import Completion, cut
from raysft.ranks import Ranks
from raysft.records import Record

GENERATION = "generation"  # what records call the section of that name; tasks have names of their own

Progress = Callable[[str, int, int, float], None]  # task, problems done, all problems, seconds left


@dataclass(frozen=True)
class Problems:
    """Problems of one task, or of the held-out data, that can be scored. numbers: their positions there."""

    name: str
    config: GenerationConfig
    template: Template
    scorer: Scorer
    numbers: list[int]
    examples: list[Example]
    prompts: list[list[int]]
    end_ids: list[int]

    @property
    def setting(self) -> str:
        return "evaluation.generation" if self.name == GENERATION else f"evaluation.tasks.{self.name}"

    @property
    def fingerprint(self) -> str:
        """Differs whenever a prompt or an answer differs."""
        return config_hash({"prompts": self.prompts, "answers": [example.response for example in self.examples]})

    def of_part(self, part: Part, share: float) -> "Problems":
        """Those of one part. Raises InputError where there is none."""
        kept = set(part_of(self.numbers, part, share))
        if not kept:
            reason = f"share {share:g} leaves none of the {len(self.numbers)} problems of {self.setting} to the {part}."
            raise InputError("confirm", reason, "Change confirm.share, or ask more problems.")
        at = [i for i, number in enumerate(self.numbers) if number in kept]
        return replace(
            self,
            numbers=[self.numbers[i] for i in at],
            examples=[self.examples[i] for i in at],
            prompts=[self.prompts[i] for i in at],
        )


def load_problems(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heldout: TokenizedData, config: SweepConfig
) -> list[Problems]:
    """The problems of evaluation.generation, if there are any, and of each task.

    Raises InputError for a reference that cannot be scored against, and where prompt and completion do not fit the
    model. Nothing is generated, so this is also the check before training.
    """
    found = []
    if generation := config.evaluation.generation:
        numbers = spread(len(heldout), generation.problems)
        scorer = build_scorer(generation, config.data.heldout or config.data.train)
        examples = [heldout.examples[i] for i in numbers]
        found.append((GENERATION, generation, config.data.template, scorer, numbers, examples))
    problems = [_checked(model, tokenizer, *part) for part in found]
    return problems + load_tasks(model, tokenizer, config.evaluation.tasks, config.data.template)


def load_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, TaskConfig], template: Template
) -> list[Problems]:
    """The problems of tasks. template: for those that name none."""
    problems = []
    for name, task in tasks.items():
        examples = list(_examples(name, task.model_dump_json()))
        numbers = [example.index for example in examples]
        scorer = build_scorer(task, task.source)
        problems.append(_checked(model, tokenizer, name, task, task.template or template, scorer, numbers, examples))
    return problems


@lru_cache(maxsize=32)
def _examples(name: str, task: str) -> tuple[Example, ...]:
    """Every trial of a group, and every evaluation of a trial, asks for the same."""
    return tuple(task_examples(name, TaskConfig.model_validate_json(task)))


def _checked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    config: GenerationConfig,
    template: Template,
    scorer: Scorer,
    numbers: list[int],
    examples: list[Example],
) -> Problems:
    check_references(scorer, examples)
    prompts = [render_prompt(example, tokenizer, template) for example in examples]
    ends = end_token_ids(tokenizer, template)
    problems = Problems(name, config, template, scorer, numbers, examples, prompts, ends)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return problems if room is None else _fitted(tokenizer, problems, room)


def _fitted(tokenizer: PreTrainedTokenizerBase, problems: Problems, room: int) -> Problems:
    """The problems, as far as the model's positions hold them."""
    config, longest = problems.config, max(map(len, problems.prompts))
    task = config if isinstance(config, TaskConfig) else None
    if task and task.scorer == "loglikelihood":
        if (whole := longest_option(tokenizer, problems.examples, task, problems.template)) > room:
            reason = f"a question and one of its options have {whole} tokens, and the model {room} positions."
            raise InputError(problems.setting, reason, "Leave such questions out with where, or use another model.")
        return problems
    if longest + config.max_new_tokens <= room:
        return problems
    if task and task.shorten and longest < room:
        return replace(problems, config=task.model_copy(update={"max_new_tokens": room - longest}))
    shorter = "Lower data.max_length." if problems.name == GENERATION else "Leave the task out for this model."
    raise InputError(
        f"{problems.setting}.max_new_tokens",
        f"{config.max_new_tokens} new tokens after the longest prompt ({longest}) exceed the model's {room} positions.",
        f"Set it to at most {room - longest}." if room > longest else shorter,
    )


@dataclass(frozen=True)
class Answer:
    """Of one sample of one problem; written: what a model generates for it, None where nothing is."""

    text: str
    written: Completion | None = None


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    budget: int,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
) -> list[Record]:
    """A record of each answer, the same and complete on every rank, by problem and sample. Collective.

    Problems are dealt to the ranks. A completion is a function of (seed, problem, sample), so that the number of ranks
    changes it no more than the batch size does: by the round-off of logits. budget: tokens of a forward pass.
    """
    at = ranks.share(list(range(len(problems.numbers))))
    if isinstance(problems.config, TaskConfig) and problems.config.scorer == "loglikelihood":
        examples = [problems.examples[i] for i in at]
        texts = option_likelihoods(model, tokenizer, examples, problems.config, problems.template, budget, device)
        answers = [[Answer(text)] for text in texts]
    else:
        answers = _completions(model, tokenizer, problems, at, device, seed, progress)
    rows = [
        (i, sample, answer) for i, samples in zip(at, answers, strict=True) for sample, answer in enumerate(samples)
    ]
    scores = problems.scorer.score_all([a.text for _, _, a in rows], [problems.examples[i] for i, _, _ in rows])
    mine = [_record(tokenizer, problems, *row, scored) for row, scored in zip(rows, scores, strict=True)]
    records = [record for part in ranks.gather(mine) for record in part]
    records.sort(key=lambda record: (record["problem"], record["sample"]))
    return records


def _completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    at: list[int],
    device: torch.device,
    seed: int,
    progress: Progress | None,
) -> list[list[Answer]]:
    """The samples of each problem."""
    config, begun, told = problems.config, time.monotonic(), 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if progress and done // config.samples > told:
            told = done // config.samples
            left = (time.monotonic() - begun) / done * (total - done)
            progress(problems.name, told, total // config.samples, left)

    def text(tokens: Sequence[int]) -> str:
        return _text(tokenizer, tokens, skip_special_tokens=True)

    numbers, prompts = [problems.numbers[i] for i in at], [problems.prompts[i] for i in at]
    pad_id = int(tokenizer.pad_token_id)
    written = complete(
        model, prompts, config, problems.end_ids, pad_id, seed, device, numbers, text=text, progress=tell
    )
    return [[Answer(_answer(completion, config, text), completion) for completion in samples] for samples in written]


def _answer(completion: Completion, config: GenerationConfig, text: Callable[[Sequence[int]], str]) -> str:
    """What is judged: without the end token or the stop string, and what follows that in its token."""
    tokens = completion.tokens[:-1] if completion.end == "token" else completion.tokens
    return cut(text(tokens), config.stop)[0]


def _record(
    tokenizer: PreTrainedTokenizerBase, problems: Problems, i: int, sample: int, answer: Answer, scored: Scored
) -> Record:
    example = problems.examples[i]
    record: Record = {
        "task": problems.name,
        "problem": problems.numbers[i],
        "sample": sample,
        "origin": example.origin,
        "prompt": _text(tokenizer, problems.prompts[i], skip_special_tokens=False),
        "reference": example.response,
        "completion": answer.text,
        **_judged(scored),
    }
    if (written := answer.written) is not None:
        repeated = repetition(written.tokens)
        record |= {"tokens": len(written.tokens), "truncated": written.truncated, "repetition": repeated}
        record |= {"entropy": written.entropy}
    return record if example.options is None else record | {"options": example.options}


def _judged(scored: Scored) -> Record:
    return {"answer": scored.answer, "score": scored.score, "how": scored.how, **scored.others}


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], skip_special_tokens: bool) -> str:
    # Cleaning up would take spaces out that the model wrote and the reference has.
    text = tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return str(text)


def rescored(records: list[Record], scorer: Scorer) -> list[Record]:
    """The records of one task, their completions judged anew: nothing but the records is needed."""
    examples = [
        Example([{"role": "assistant", "content": r["reference"]}], r["origin"], r["problem"], r.get("options"))
        for r in records
    ]
    check_references(scorer, examples)
    scores = scorer.score_all([record["completion"] for record in records], examples)
    return [record | _judged(scored) for record, scored in zip(records, scores, strict=True)]


# --- what the records come to ---------------------------------------------------------------------------------------


def summary(records: list[Record], prefix: str) -> dict[str, float]:
    """Means over problems of means over their samples; samples of one problem are one cluster of the standard error.

    accuracy_se is left out for a single problem, which has none; pass_at_k for a single sample, whose it would be.
    """
    problems = [list(group) for _, group in groupby(records, key=lambda record: record["problem"])]
    metrics = {"accuracy": _mean(problems, "score")}
    if len(problems) > 1:
        scores = [statistics.fmean(record["score"] for record in samples) for samples in problems]
        metrics["accuracy_se"] = statistics.stdev(scores) / len(scores) ** 0.5
    for k in _powers_of_two(len(problems[0])):
        metrics[f"pass_at_{k}"] = statistics.fmean(pass_at(k, [r["score"] >= 1 for r in p]) for p in problems)
    if "tokens" in records[0]:
        metrics["generated_tokens"] = statistics.fmean(record["tokens"] for record in records)
        metrics["truncated"] = statistics.fmean(record["truncated"] for record in records)
        metrics["repetition"] = statistics.fmean(record["repetition"] for record in records)
        metrics["generation_entropy"] = statistics.fmean(record["entropy"] for record in records)
    for name in sorted(records[0].keys() - NOT_SCORES):
        metrics[name] = _mean(problems, name)
    if timeouts := statistics.fmean(record["how"] == TIMEOUT for record in records):
        metrics["scorer_timeouts"] = timeouts
    return {prefix + name: value for name, value in metrics.items()}


NOT_SCORES = {
    "task", "problem", "sample", "origin", "prompt", "reference", "completion", "answer", "score", "how", "tokens",
    "truncated", "options", "repetition", "entropy",
}  # fmt: skip


def _mean(problems: list[list[Record]], name: str) -> float:
    return statistics.fmean(statistics.fmean(record[name] for record in samples) for samples in problems)


def pass_at(k: int, right: Sequence[bool]) -> float:
    """The chance that one of k samples is right, unbiased, from n >= k samples (arXiv 2107.03374, Eq. 1)."""
    n, wrong = len(right), len(right) - sum(right)
    return 1.0 - math.comb(wrong, k) / math.comb(n, k)


def _powers_of_two(samples: int) -> list[int]:
    """2, 4, 8, ... below the number of samples, and that number; none for a single sample."""
    powers = [2**i for i in range(1, samples.bit_length()) if 2**i < samples]
    return [*powers, samples] if samples > 1 else []


def over_tasks(metrics: dict[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """eval/accuracy, the unweighted mean over tasks, and its standard error where each of them has one."""
    mean = {"eval/accuracy": statistics.fmean(metrics[f"eval/{task}/accuracy"] for task in tasks)}
    errors = [metrics.get(f"eval/{task}/accuracy_se") for task in tasks]
    known = [error for error in errors if error is not None]
    if len(known) == len(errors):
        mean["eval/accuracy_se"] = math.hypot(*known) / len(known)
    return mean
