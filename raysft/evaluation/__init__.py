"""What a model does on held-out data and on tasks: scores that are the same function for every objective, and accuracy.

A scorer of one's own is a file that registers a `Scorer` and is imported here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysft.backbone import collate
from raysft.config import SweepConfig
from raysft.data.problems import Part, part_of
from raysft.data.tokenized import TokenizedData
from raysft.errors import TrialFailed
from raysft.evaluation.accuracy import (
    GENERATION,
    Problems,
    Progress,
    answered,
    load_problems,
    load_tasks,
    over_tasks,
    rescored,
    summary,
)
from raysft.evaluation.exact_match import ExactMatch
from raysft.evaluation.figlet import Figlet
from raysft.evaluation.generation import generate
from raysft.evaluation.heldout import heldout_scores
from raysft.evaluation.loglikelihood import LogLikelihood
from raysft.evaluation.mathematics import Mathematics
from raysft.evaluation.numeric import Numeric
from raysft.evaluation.options import Options
from raysft.evaluation.reasoning_gym import ReasoningGym
from raysft.evaluation.scorers import Scored, Scorer, build_scorer, check_references, register
from raysft.ranks import Ranks
from raysft.records import Record, read_records, write_records
from raysft.training.model import Model, plain

__all__ = [
    "Evaluation",
    "ExactMatch",
    "Figlet",
    "LogLikelihood",
    "Mathematics",
    "Numeric",
    "Options",
    "Problems",
    "ReasoningGym",
    "Scored",
    "Scorer",
    "ask",
    "build_scorer",
    "check_references",
    "evaluate",
    "generate",
    "heldout_scores",
    "load_problems",
    "load_tasks",
    "read_records",
    "register",
    "rescored",
    "summarised",
    "write_records",
]


@dataclass(frozen=True)
class Evaluation:
    """metrics: those of heldout_scores, and of `summarised`; records: one of each answer."""

    metrics: dict[str, float]
    records: list[Record]


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    heldout: TokenizedData,
    config: SweepConfig,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
    part: Part = "all",
) -> Evaluation:
    """Evaluate a model, whose weights lie whole on `device`, as config.evaluation says. Collective.

    part: the problems that are asked, and the held-out samples that are scored, as config.confirm.share divides them.

    Metrics and records are the same and complete on every rank. The model's mode, its settings and torch's random
    state are afterwards what they were. Raises InputError where problems cannot be scored (before anything runs), and
    TrialFailed where the model gives no finite probabilities.
    """
    model = plain(model)
    share = config.confirm.share if config.confirm else 0.0
    problems = [asked.of_part(part, share) for asked in load_problems(model, tokenizer, heldout, config)]
    scored = part_of(range(len(heldout)), part, share)
    budget = config.training.micro_batch_tokens
    metrics = heldout_scores(model, heldout, budget, collate(model, tokenizer), ranks, device, scored)
    if not math.isfinite(metrics["eval/nll"]):
        raise TrialFailed(f"the held-out NLL is {metrics['eval/nll']}: the weights are no longer numbers.")
    asked = ask(model, tokenizer, problems, budget, ranks, device, seed, progress)
    return Evaluation(metrics | asked.metrics, asked.records)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problems],
    budget: int,
    ranks: Ranks,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Put the problems to the model. Collective."""
    parts = [answered(model, tokenizer, part, budget, ranks, device, seed, progress) for part in problems]
    return summarised([record for part in parts for record in part])


def summarised(records: list[Record]) -> Evaluation:
    """Of evaluation.generation: eval/accuracy, eval/accuracy_se (from two problems on), eval/pass_at_k (from two
    samples on), eval/generated_tokens and eval/truncated; of a task the same as eval/TASK/..., and the scores that only
    its scorer gives. eval/accuracy is the mean over tasks where there is no generation section.
    """
    names = list(dict.fromkeys(record["task"] for record in records))
    metrics: dict[str, float] = {}
    for name in names:
        prefix = "eval/" if name == GENERATION else f"eval/{name}/"
        metrics |= summary([record for record in records if record["task"] == name], prefix)
    if names and GENERATION not in names:
        metrics |= over_tasks(metrics, names)
    return Evaluation(metrics, records)
