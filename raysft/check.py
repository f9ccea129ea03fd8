"""What a sweep would run: trials, steps, tokens and disk, once `raysft.preflight` has found nothing wrong."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from raysft.architecture import of_backbone
from raysft.config import SweepConfig, total_steps
from raysft.exposure import check_mlflow
from raysft.preflight import Samples, Shapes, check_backbone, check_data, check_output, check_tasks, check_written
from raysft.sweep.confirm import most_confirm_trials

CHECKPOINTS = 3  # of a trial at its fullest: two are kept while the next is written


@dataclass(frozen=True)
class BackbonePlan:
    """One backbone's study. None: known only when data or weights are fetched from the hub.

    grid: points of which the searched are the first. confirming: trials after the search, at most. samples, steps,
    tokens: of one trial, at most. at_once: trials, None where the cluster's size decides. left_out: samples that cannot
    be read, as told by check_data. checkpoint_bytes: of one trial; export_bytes: of the models that are kept.
    """

    name: str
    path: str
    baselines: int
    searched: int
    grid: int | None
    confirming: int
    workers: int
    resources: dict[str, float]
    at_once: int | None
    samples: int | None
    left_out: tuple[str, ...]
    steps: int | None
    tokens: int | None
    checkpoint_bytes: int | None
    export_bytes: int | None

    @property
    def trials(self) -> int:
        return self.baselines + self.searched + self.confirming


@dataclass(frozen=True)
class Plan:
    name: str
    folder: Path
    backbones: tuple[BackbonePlan, ...]


def check(config: SweepConfig) -> Plan:
    """Raises InputError for the first thing that could not run."""
    check_output(config.folder)
    check_written(config)
    check_mlflow(config.tracking.uri)
    plans: list[BackbonePlan] = []
    samples: dict[str, Samples] = {}
    for backbone in config.backbones:
        study = config.for_backbone(backbone.name)
        shapes = check_backbone(study)
        if shapes is None and (known := of_backbone(study.backbone)) is not None:
            shapes = known.shapes
        data = study.data.model_dump_json()
        if data not in samples:
            samples[data] = check_data(study.data)
        check_tasks(study.evaluation.tasks)
        plans.append(_plan(study, samples[data], shapes))
    return Plan(config.name, config.folder, tuple(plans))


def describe(plan: Plan) -> list[tuple[str, str]]:
    """Rows of a table: what, and how much."""
    trials = sum(b.trials for b in plan.backbones)
    rows = [("sweep", plan.name), ("results in", str(plan.folder)), ("trials", f"{trials:,}")]
    for b in plan.backbones:
        left = f" of the grid's {b.grid:,}" if b.grid is not None and b.grid > b.searched else ""
        confirming = f", at most {b.confirming} to confirm" if b.confirming else ""
        needs = " + ".join(f"{amount:g} {name}" for name, amount in b.resources.items())
        rows += [
            (f"backbone {b.name}", b.path),
            ("  trials", f"{b.trials:,} ({b.baselines} baselines, {b.searched} searched{left}{confirming})"),
            ("  trials at once", "as many as fit the cluster" if b.at_once is None else f"at most {b.at_once}"),
            ("  workers of a trial", f"{b.workers} of {needs}"),
            ("  training samples", _count(b.samples)),
            *(("  left out", told) for told in b.left_out),
            ("  steps of a trial", _count(b.steps)),
            ("  tokens of a trial", _count(b.tokens)),
            ("  checkpoints of a trial", _size(b.checkpoint_bytes)),
            ("  exported models", _size(b.export_bytes)),
        ]
    return rows


def _count(number: int | None) -> str:
    return "known when the data are fetched" if number is None else f"at most {number:,}"


def _size(number: int | None) -> str:
    return "known when the weights are fetched" if number is None else f"at most {size(number)}"


def size(number: float) -> str:
    """Bytes in three digits."""
    rounded = int(float(f"{number:.3g}"))
    power = min((len(str(rounded)) - 1) // 3, 4)
    return f"{rounded / 1000**power:g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _plan(study: SweepConfig, samples: Samples, shapes: Shapes | None) -> BackbonePlan:
    training, workers = study.training, study.workers
    steps = training.steps if samples.count is None else total_steps(training, samples.count)
    grid = study.grid()
    trials = len(study.all_baselines()) + study.searched + most_confirm_trials(study)
    models = {"none": 0, "best": 1, "all": trials}[study.export]
    return BackbonePlan(
        name=study.backbone.name,
        path=study.backbone.path,
        baselines=len(study.all_baselines()),
        searched=study.searched,
        grid=None if grid is None else len(grid),
        confirming=most_confirm_trials(study),
        workers=workers.count,
        resources=workers.resources,
        at_once=workers.max_concurrent,
        samples=samples.count,
        left_out=samples.left_out,
        steps=steps,
        tokens=None if steps is None else steps * training.global_batch_size * study.data.max_length,
        checkpoint_bytes=None if shapes is None else CHECKPOINTS * _checkpoint_bytes(study, shapes),
        export_bytes=None if shapes is None else models * _weight_bytes(study, shapes),
    )


def _weight_bytes(study: SweepConfig, shapes: Shapes) -> int:
    return sum(map(prod, shapes.values())) * (2 if study.training.precision == "bf16" else 4)


def _checkpoint_bytes(study: SweepConfig, shapes: Shapes) -> int:
    """Weights, AdamW's two fp32 moments and, under bf16 or ZeRO, an fp32 copy of what is trained."""
    training = study.training
    trained = sum(map(prod, shapes.values()))
    if training.lora is not None:
        trained = sum(training.lora.rank * sum(s) for name, s in shapes.items() if len(s) == 2 and ".layers." in name)
    copies = 3 if training.precision == "bf16" or study.zero.stage > 0 else 2
    return _weight_bytes(study, shapes) + 4 * copies * trained
