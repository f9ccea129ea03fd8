"""The same work in this one process, without Ray and DeepSpeed: for looking closely, and for a single GPU."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from raysft.config import BackboneConfig, Job, SweepConfig, TrialConfig
from raysft.evaluationconfig import TaskConfig, Template
from raysft.probe import Capability
from raysft.progress import duration
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.trial import Bench, TrialResult, resolve_threshold

Say = Callable[[str], None]

TOKENS_AT_ONCE = 4096  # of a forward pass over options


def bench_here(config: SweepConfig) -> Bench:
    """config: a study's (made by for_backbone); its workers are replaced by this process."""
    libraries_quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone = config.workers.model_copy(update={"count": 1})
    return Bench(config.model_copy(update={"workers": alone}), "plain", Ranks(), device)


def train_here(config: SweepConfig, trial: TrialConfig, say: Say) -> TrialResult:
    """Train one objective; the model, metrics and completions lie in the folder that is printed."""
    bench = bench_here(config)
    for note in bench.notes():
        say(note)
    if trial.objective.threshold_unit == "quantile":
        trial = resolve_threshold(trial, bench.probe())
    folder = config.folder / config.backbone.name / "in-process" / trial.name()

    def report(step: int, metrics: dict[str, float]) -> None:
        say(f"step {step}/{bench.steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in sorted(metrics.items())))

    result = bench.run(Job(folder.name, trial, folder), report, export=lambda metrics: True)
    say(f"{trial.objective.label()}: {folder}")
    return result


def probe_here(config: SweepConfig, say: Say) -> Capability:
    """Measure and print a backbone's capability on the training data."""
    bench = bench_here(config)
    capability = bench.probe()
    say(f"backbone              {config.backbone.name} ({config.backbone.path})")
    say(f"training samples      {len(bench.train)} ({bench.train.counts})")
    say(f"probed                {capability.samples} samples, {capability.tokens} supervised tokens")
    say(f"capability            {capability.mean_probability:.4f} (token mean of the target's probability)")
    say(f"tokens with p >= .55  {capability.share_above:.1%}")
    levels = "  ".join(f"{q}% {capability.quantile(q / 100):.3g}" for q in (5, 10, 25, 50, 75, 90, 95))
    say(f"quantiles of p        {levels}")
    return capability


def evaluate_here(config: SweepConfig, model: str | None, say: Say) -> dict[str, float]:
    """Score a model (default: the backbone itself) on the held-out data and the tasks of a sweep."""
    from raysft.evaluation import evaluate

    if model is not None:
        config = config.model_copy(update={"backbones": [BackboneConfig(name=config.backbone.name, path=model)]})
    bench = bench_here(config)
    on_device = bench.base.to(bench.device)  # type: ignore[arg-type]
    evaluation = evaluate(
        on_device, bench.tokenizer, bench.heldout, bench.config, bench.ranks, bench.device, config.seed, _told
    )
    _say_metrics(evaluation.metrics, say)
    return evaluation.metrics


def evaluate_tasks_here(
    backbone: BackboneConfig,
    tasks: dict[str, TaskConfig],
    folder: Path,
    say: Say,
    template: Template | None = None,
    precision: str = "bf16",
    seed: int = 0,
) -> dict[str, float]:
    """Ask a model the problems of tasks; its records lie in `folder` as completions.jsonl.gz.

    template: for tasks that name none; None: the tokenizer's own chat template, or plain text where it has none.
    """
    from raysft.backbone import load_model, load_tokenizer
    from raysft.evaluation import ask, load_tasks, write_records

    libraries_quiet()
    tokenizer, model = load_tokenizer(backbone), load_model(backbone, precision)
    template = template or ("chat" if tokenizer.chat_template else "plain")
    problems = load_tasks(model, tokenizer, tasks, template)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]
    evaluation = ask(model, tokenizer, problems, TOKENS_AT_ONCE, Ranks(), device, seed, _told)
    folder.mkdir(parents=True, exist_ok=True)
    write_records(evaluation.records, folder / "completions.jsonl.gz")
    _say_metrics(evaluation.metrics, say)
    return evaluation.metrics


def rescore_here(path: Path, tasks: dict[str, TaskConfig], output: Path, say: Say) -> dict[str, float]:
    """Judge recorded answers anew. tasks: by the name that the records have for theirs, all of which are there."""
    from raysft.evaluation import build_scorer, read_records, rescored, summarised, write_records

    records = read_records(path)
    judged = []
    for name, task in tasks.items():
        judged += rescored([r for r in records if r["task"] == name], build_scorer(task, task.source))
    evaluation = summarised(judged)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_records(evaluation.records, output)
    _say_metrics(evaluation.metrics, say)
    return evaluation.metrics


def _say_metrics(metrics: dict[str, float], say: Say) -> None:
    width = max(24, *map(len, metrics))
    for name, value in metrics.items():
        say(f"{name:{width}} {value:.4f}")


def _told(task: str, done: int, total: int, seconds: float) -> None:
    """How far an evaluation is, apart from its result."""
    left = f", {duration(seconds)} left" if done < total else ""
    print(f"{task}: {done}/{total} problems{left}", file=sys.stderr, flush=True)
