"""The same work in this one process, without Ray and DeepSpeed: for looking closely, and for a single GPU."""

from collections.abc import Callable

import torch

from raysft.advisor import advise, resolve
from raysft.capability import Capability
from raysft.config import BackboneConfig, Job, SweepConfig, TrialConfig
from raysft.modelscores import say_metrics, told
from raysft.objectives.auto import Auto
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.trial import Bench, TrialResult

Say = Callable[[str], None]


def bench_here(config: SweepConfig) -> Bench:
    """config: a study's (made by for_backbone); its workers are replaced by this process."""
    libraries_quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone = config.workers.model_copy(update={"count": 1, "lanes": 1})
    return Bench(config.model_copy(update={"workers": alone}), "plain", Ranks(), device)


def train_here(config: SweepConfig, trial: TrialConfig, say: Say) -> TrialResult:
    """Train one objective; the model, metrics and completions lie in the folder that is printed."""
    bench = bench_here(config)
    for note in bench.notes():
        say(note)
    trial = _resolved(trial, bench, say)
    place = config.store.below(config.backbone.name, "in-process", trial.name())

    def report(step: int, metrics: dict[str, float]) -> None:
        say(f"step {step}/{bench.steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in sorted(metrics.items())))

    job = Job(trial.name(), trial, place.folder, uri=place.uri)
    result = bench.run(job, report, export=lambda metrics: True)
    say(f"{trial.objective.label()}: {place.uri or place.folder}")
    return result


def _resolved(trial: TrialConfig, bench: Bench, say: Say) -> TrialConfig:
    """With what the probe decides filled in."""
    if isinstance(trial.objective, Auto):
        from raysft.evidence import earlier_studies

        capability = bench.probe()
        evidence, note = earlier_studies(bench.config)
        if note:
            say(note)
        return resolve(trial, capability, advise(capability, evidence))
    if trial.objective.threshold_unit == "quantile":
        return resolve(trial, bench.probe(), None)
    return trial


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
    config = config.model_copy(update={"confirm": None})  # all problems
    bench = bench_here(config)
    for note in bench.notes():
        say(note)
    on_device = bench.base.to(bench.device)  # type: ignore[arg-type]
    evaluation = evaluate(
        on_device, bench.tokenizer, bench.heldout, bench.config, bench.ranks, bench.device, config.seed, told
    )
    say_metrics(evaluation.metrics, say)
    return evaluation.metrics
