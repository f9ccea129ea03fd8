"""What a model does on held-out data: scores that are the same function for every objective, and accuracy.

A scorer of one's own is a file that registers a `Scorer` and is imported here.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from raysft.backbone import collate
from raysft.config import SweepConfig
from raysft.data.tokenized import TokenizedData
from raysft.errors import TrialFailed
from raysft.evaluation.accuracy import Problems, generation_scores, load_problems
from raysft.evaluation.exact_match import ExactMatch
from raysft.evaluation.generation import generate
from raysft.evaluation.heldout import heldout_scores
from raysft.evaluation.numeric import Numeric
from raysft.evaluation.reasoning_gym import ReasoningGym
from raysft.evaluation.records import Record, read_records, write_records
from raysft.evaluation.scorers import Scored, Scorer, build_scorer, check_references, register
from raysft.ranks import Ranks
from raysft.training.model import Model, plain

__all__ = [
    "Evaluation",
    "ExactMatch",
    "Numeric",
    "Problems",
    "ReasoningGym",
    "Scored",
    "Scorer",
    "build_scorer",
    "check_references",
    "evaluate",
    "generate",
    "heldout_scores",
    "load_problems",
    "read_records",
    "register",
    "write_records",
]


@dataclass(frozen=True)
class Evaluation:
    """metrics: those of heldout_scores, and with evaluation.generation eval/accuracy, eval/accuracy_se (from two
    problems on), eval/generated_tokens and eval/truncated; records: one of each completion."""

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
) -> Evaluation:
    """Evaluate a model, whose weights lie whole on `device`, as config.evaluation says. Collective.

    Metrics and records are the same and complete on every rank. The model's mode, its settings and torch's random
    state are afterwards what they were. Raises InputError where problems cannot be scored (before anything runs), and
    TrialFailed where the model gives no finite probabilities.
    """
    model = plain(model)
    pad_id = int(tokenizer.pad_token_id)
    problems = load_problems(model, tokenizer, heldout, config)
    metrics = heldout_scores(
        model, heldout, config.training.micro_batch_tokens, collate(model, tokenizer), ranks, device
    )
    if not math.isfinite(metrics["eval/nll"]):
        raise TrialFailed(f"the held-out NLL is {metrics['eval/nll']}: the weights are no longer numbers.")
    generation = config.evaluation.generation
    if problems is None or generation is None:
        return Evaluation(metrics, [])
    accuracy, records = generation_scores(model, tokenizer, problems, generation, pad_id, ranks, device, seed)
    return Evaluation(metrics | accuracy, records)
