"""The operations and time that a trial and a sweep would need, by arithmetic. Needs neither torch nor ray.

All samples are as long as data.max_length, all completions as long as max_new_tokens; prompts are not counted.
"""

from dataclasses import dataclass
from math import ceil, prod

from raysft.architecture import Architecture, known_rows
from raysft.config import GenerationConfig, ReasoningGymSource, SweepConfig, TaskConfig
from raysft.devices import Device
from raysft.estimate import token_bytes, trained_parameters, weight_bytes, written
from raysft.sweep.confirm import most_confirm_trials

# Seconds that a layer of a decoding step takes at least, since Python launches its kernels one by one: assumed, not
# measured.
LAYER_SECONDS = 1e-3


@dataclass(frozen=True)
class Work:
    """Of one trial. operations: of the steps of its training, as raysft.training.flops counts, and what gradient
    checkpointing computes twice; held_out: of one evaluation's pass; decoding: of each section that lets the model
    write, its completions, their length, and how many a worker writes at once.
    """

    step: float
    steps: int
    held_out: float
    decoding: tuple[tuple[int, int, int], ...]

    @property
    def operations(self) -> float:
        return self.step * self.steps


def operations(architecture: Architecture, tokens: int, squares: int, trained: int | None = None) -> dict[str, float]:
    """Of a pass over samples of so many tokens, squares: the sum of their lengths squared, by what they are for.

    trained: adapters' parameters; None: all weights learn.
    """
    a = architecture
    layers = 2 * (sum(map(prod, a.matrices.values())) + (trained or 0))
    attention = squares * 2 * a.queries * a.layers
    head = 2 * a.vocabulary * a.hidden
    gradients = layers if trained is None else 2 * trained
    return {
        "forward": tokens * layers + attention,
        "backward": tokens * (layers + gradients) + 2 * attention,
        "head": tokens * head * (3 if trained is None else 2),
    }


def work(study: SweepConfig, architecture: Architecture, steps: int) -> Work:
    training, longest = study.training, study.data.max_length
    trained = trained_parameters(study, architecture) if training.lora else None
    tokens = training.global_batch_size * longest
    parts = operations(architecture, tokens, tokens * longest, trained)
    step = sum(parts.values()) + (parts["forward"] if training.gradient_checkpointing else 0)
    samples = study.data.heldout_samples
    seen = operations(architecture, samples * longest, samples * longest**2, trained)
    held_out = seen["forward"] + seen["head"] / (3 if trained is None else 2)
    decoding = tuple(
        (problems(section, study) * section.samples, section.max_new_tokens, section.batch_size)
        for section in written(study, architecture)
    )
    return Work(step, steps, held_out, decoding)


def problems(section: GenerationConfig, study: SweepConfig) -> int:
    """How many a section asks, as far as is known: at most those it names, or what its source has."""
    if not isinstance(section, TaskConfig):
        return min(section.problems or study.data.heldout_samples, study.data.heldout_samples)
    source = section.source
    rows = source.size if isinstance(source, ReasoningGymSource) else known_rows(source)
    return min(section.problems or rows or 0, rows or section.problems or 0)


def not_counted(study: SweepConfig) -> list[str]:
    """Tasks whose number of problems is not known here."""
    return [name for name, task in study.evaluation.tasks.items() if problems(task, study) == 0]


def device_seconds(
    study: SweepConfig,
    architecture: Architecture,
    needed: Work,
    device: Device,
    utilisation: float,
    steps: float | None = None,
    share: float = 1.0,
) -> tuple[float, float]:
    """Of one trial, over all of its workers: (training, evaluation).

    steps: of its training, by default all; share: of the problems and held-out samples that it is judged on.
    A decoding step takes the longest of its operations, of reading the weights and the rows' keys and values once, and
    of LAYER_SECONDS for each layer.
    """
    steps = needed.steps if steps is None else steps
    every = study.evaluation.every
    evaluations = max(1, ceil(steps / every)) if every else int(steps >= needed.steps)
    weights = architecture.parameters * weight_bytes(study)
    reading, computing = device.bandwidth * utilisation, device.peak * utilisation
    decoding = 0.0
    for completions, length, rows in needed.decoding:
        held = rows * length / 2 * token_bytes(study, architecture)
        operating = 2 * architecture.parameters * rows / computing
        one = max((weights + held) / reading, operating, LAYER_SECONDS * architecture.layers)
        decoding += completions * length / rows * one
    judged = share * evaluations * (needed.held_out / computing + decoding)
    return needed.step * steps / computing, judged


def sweep_device_hours(
    study: SweepConfig, architecture: Architecture, needed: Work, device: Device, utilisation: float
) -> float:
    """Of all trials of a study: baselines, search (by successive halving where it is on) and what confirms it."""

    def hours(count: float, steps: float | None = None, share: float = 1.0) -> float:
        return count * sum(device_seconds(study, architecture, needed, device, utilisation, steps, share)) / 3600

    reported = study.confirm.share if study.confirm else 0.0
    searched = sum(hours(count, steps, 1 - reported) for count, steps in legs(study, needed.steps))
    compared = hours(len(study.all_baselines()), share=1 - reported)
    return compared + searched + hours(most_confirm_trials(study), share=reported)


def legs(study: SweepConfig, steps: int) -> list[tuple[int, float]]:
    """Searched trials, and the steps that each takes, the most that successive halving allows."""
    trials, asha = study.searched, study.search.asha
    if asha is None or asha.grace_period >= steps or trials == 0:
        return [(trials, steps)]
    found, rung = [], asha.grace_period
    while rung < steps and trials:
        promoted = max(1, trials // asha.reduction_factor)
        if promoted < trials:
            found.append((trials - promoted, rung))
        trials, rung = promoted, rung * asha.reduction_factor
    return [*found, (trials, steps)]
