"""What `raysft check` does: the plan of a sweep, an estimate of its memory, time and cost, and a look at a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass

from raysft.architecture import Architecture, known_rows, of_backbone
from raysft.check import BackbonePlan, Plan, check, describe, size
from raysft.config import SweepConfig, total_steps
from raysft.devices import UTILISATION, Device, find_device, named_device
from raysft.duration import device_seconds, not_counted, sweep_device_hours, work
from raysft.errors import InputError
from raysft.estimate import Memory, When, changes_that_fit, fits, memory, rows_that_fit, writing

Rows = list[tuple[str, str]]
MOMENTS: dict[When, str] = {
    "always": "",
    "start": ", at its start",
    "training": ", in training",
    "passes": ", in a pass",
    "update": ", in an update",
    "evaluation": ", in evaluation",
}

ASSUMED = (
    "An estimate by arithmetic, not compared with a GPU. It takes every sample to be as long as data.max_length and "
    "every completion as long as max_new_tokens, which is the most; prompts of completions are not counted. Trials run "
    "without a break, at {utilisation:.0%} of what the device's maker states, in operations or in reading its memory; "
    "a step of writing takes a millisecond a layer at least. Start, exchange between workers and checkpoints are not "
    "in it."
)


@dataclass(frozen=True)
class Setting:
    """What a user asks for. device: whose memory and speed count; groups: that work at once; price: of a device hour.

    available: bytes of the device, where a cluster says so.
    """

    device: Device | None = None
    utilisation: float = UTILISATION
    price: float | None = None
    groups: dict[str, int] | None = None
    available: float | None = None

    @property
    def memory(self) -> float | None:
        return self.available or (self.device.memory if self.device else None)


@dataclass(frozen=True)
class Estimated:
    """rows: of a table; refused: why a backbone's trials cannot run there."""

    rows: Rows
    refused: list[InputError]


def check_here(
    config: SweepConfig, address: str | None, device: str | None, utilisation: float, price: float | None
) -> tuple[Rows, list[InputError]]:
    """Rows of a table, and what is refused once they have been shown.

    address: of a running cluster that is looked at, too. Raises InputError for a file that could not run anywhere.
    """
    plan = check(config)
    setting = Setting(named_device(device) if device else None, utilisation, price)
    if setting.device is not None:
        _check_asked(config, setting.device)
    if address is None:
        estimated = estimate(config, plan, setting)
        return describe(plan) + estimated.rows, estimated.refused
    from raysft.nodes import look_at

    found = look_at(config, address)
    gpu = found.smallest_gpu
    if gpu is not None:
        setting = Setting(setting.device or find_device(gpu.name), utilisation, price, found.groups, gpu.memory)
    else:
        setting = Setting(setting.device, utilisation, price, found.groups)
    estimated = estimate(config, plan, setting)
    refused = {str(error): error for error in [*found.refused, *estimated.refused]}  # backbones may share a reason
    return describe(plan) + estimated.rows + found.rows, list(refused.values())


def _check_asked(config: SweepConfig, device: Device) -> None:
    """Raises InputError where a device is named for workers that ask for none."""
    for backbone in config.backbones:
        if config.for_backbone(backbone.name).workers.resources.get("GPU", 0) <= 0:
            raise InputError(
                f"--device {device.name}",
                f"is a GPU, and the workers of backbone '{backbone.name}' ask for none.",
                "Add --set 'workers.resources={CPU: 1, GPU: 1}', or leave --device out.",
            )


def estimate(config: SweepConfig, plan: Plan, setting: Setting) -> Estimated:
    rows: Rows = []
    refused: list[InputError] = []
    totals: list[float] = []
    for of in plan.backbones:
        study = config.for_backbone(of.name)
        architecture = of_backbone(study.backbone)
        rows.append((f"estimate for {of.name}", ""))
        if architecture is None:
            rows.append(("  parameters", "known when the weights are fetched, as is all that follows from them"))
            continue
        needed = memory(study, architecture)
        rows += _memory_rows(study, architecture, needed, setting)
        if setting.memory is not None and needed.on_gpu and not fits(study, architecture, setting.memory):
            refused.append(_too_large(study, architecture, needed, setting.memory))
        time_rows, hours = _time_rows(study, architecture, of, setting)
        rows += time_rows
        totals += [hours] if hours is not None else []
    if setting.device is not None and len(totals) == len(plan.backbones):
        rows += _total_rows(sum(totals), setting)
    if setting.device is None:
        rows.append(("time and cost", "name the device: --device h100, --price 2.5 (of an hour of one)"))
    rows.append(("how it is estimated", ASSUMED.format(utilisation=setting.utilisation)))
    return Estimated(rows, refused)


def _memory_rows(
    study: SweepConfig, architecture: Architecture, needed: Memory, setting: Setting
) -> Iterator[tuple[str, str]]:
    yield "  parameters", _large(architecture.parameters)
    where = f"{size(needed.device)} of a GPU, {size(needed.host)} of the host" if needed.on_gpu else size(needed.host)
    yield "  memory of a worker", f"{where}, at its fullest"
    for part in needed.parts:
        place = ", on the host" if part.on_host and needed.on_gpu else ""
        yield f"    {part.name}", f"{size(part.bytes)}{MOMENTS[part.when]}{place}"
    if not (most := writing(study, architecture)):
        return
    yield "    completions, all at their limit", f"{size(most)}, in evaluation"
    if setting.memory is None or not needed.on_gpu:
        return
    room = setting.memory - needed.evaluating
    if 0 < room < most:
        rows = rows_that_fit(study, architecture, room)
        yield (
            "",
            f"there is room for {size(room)}: if many are so long, set batch_size of its section or tasks to {rows}",
        )


def _too_large(study: SweepConfig, architecture: Architecture, needed: Memory, available: float) -> InputError:
    place = f"backbone '{study.backbone.name}' ({study.backbone.path})"
    changes = changes_that_fit(study, architecture, available)
    fix = "None of more workers, sharding, offload, checkpointing or LoRA makes it fit: take a larger device."
    if changes:
        fix = f"By the same estimate it fits with {'; or '.join(changes)}."
    share = min(1.0, study.workers.resources.get("GPU", 1.0))
    part = "" if share == 1 else f", of which a worker gets {share:g}"
    reason = f"a worker needs {size(needed.device)} of a GPU, which has {size(available)}{part}."
    return InputError(place, reason, fix)


def _time_rows(
    study: SweepConfig, architecture: Architecture, of: BackbonePlan, setting: Setting
) -> tuple[Rows, float | None]:
    """And the device hours of the study, where they can be told."""
    steps, source = _steps(study, of)
    if steps is None:
        return [("  time and cost", "known when the data are fetched")], None
    needed = work(study, architecture, steps)
    completions = sum(count * length for count, length, _ in needed.decoding)
    rows = [
        ("  operations of a trial", f"at most {needed.operations:.2g} in {steps:,} steps of training{source}"),
        ("  completions of a trial", f"at most {_large(completions)} tokens" if completions else "none"),
    ]
    if unknown := not_counted(study):
        rows.append(("  not counted", f"completions of {', '.join(unknown)}: their problems are known when fetched"))
    if setting.device is None:
        return rows, None
    if study.workers.resources.get("GPU", 0) <= 0:
        return [*rows, ("  time", "not told: its workers ask for no GPU")], None
    if study.training.precision != "bf16":
        return [*rows, ("  time", "not told: the devices' speeds are known for training.precision bf16 alone")], None
    seconds = device_seconds(study, architecture, needed, setting.device, setting.utilisation)
    workers = study.workers
    training, judging = (part / 3600 / workers.count for part in seconds)
    rows.append(("  time of a trial", f"about {_hours(training)} of training and {_hours(judging)} of evaluation"))
    busy = sweep_device_hours(study, architecture, needed, setting.device, setting.utilisation)
    hours = busy * workers.resources["GPU"]
    groups = (setting.groups or {}).get(of.name) or of.at_once or 1
    wall = busy / workers.count / groups
    rows += [
        ("  all trials", f"about {_hours(hours)} of {setting.device.name}"),
        ("  wall time", f"about {_hours(wall)} with {groups} group{'s' if groups > 1 else ''} at once"),
    ]
    return rows, hours


def _total_rows(hours: float, setting: Setting) -> Rows:
    assert setting.device is not None
    rows = [("the whole sweep", f"about {_hours(hours)} of {setting.device.name}")]
    if setting.price is not None:
        rows.append(("cost", f"about {_rounded(hours * setting.price)}, at {setting.price:g} an hour"))
    return rows


def _steps(study: SweepConfig, of: BackbonePlan) -> tuple[int | None, str]:
    """Of a trial, and whence that is known: planned, or by the rows that its data set is known to have."""
    if of.steps is not None:
        return of.steps, ""
    rows = known_rows(study.data.train)
    if rows is None:
        return None, ""
    left = rows - (0 if study.data.heldout else study.data.heldout_samples)
    steps = total_steps(study.training, max(1, min(left, study.data.train_samples or left)))
    return steps, f", if the data set has the {rows:,} rows that it is known for"


def _large(number: float) -> str:
    for unit, factor in (("billion", 1e9), ("million", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:,}"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    return f"{hours * 60:.2g} min" if hours < 1 else f"{_rounded(hours)} h"


def _rounded(number: float) -> str:
    """In three digits, without an exponent."""
    return f"{float(f'{number:.3g}'):,g}"
