"""Operations and time: against the loop's own count, and numbers by hand."""

from collections.abc import Callable

import pytest

from raysft.config import SweepConfig, TrainingConfig
from raysft.devices import Device
from raysft.duration import device_seconds, legs, operations, sweep_device_hours, work
from raysft.estimate import trained_parameters
from raysft.training.flops import Flops
from raysft.training.model import trainable_model
from tests.architectures import made, study_of

Make = Callable[..., SweepConfig]
GB = 1e9


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_operations_are_those_that_the_loop_counts(make_config: Make, name: str, rank: int | None) -> None:
    model, architecture = made(name)
    lora = None if rank is None else {"rank": rank}
    if name == "gpt2" and rank is not None:
        lora = {"rank": rank, "target_modules": ["c_fc"]}
    study = make_config(training={"lora": lora, "steps": 6, "global_batch_size": 8})
    lengths = [7, 30, 12]
    counted = Flops(trainable_model(model, study.training)).step(lengths, sum(lengths))
    trained = trained_parameters(study, architecture) if lora else None
    found = operations(architecture, sum(lengths), sum(n * n for n in lengths), trained)
    assert sum(found.values()) == pytest.approx(counted, rel=1e-9)


def test_a_step_is_six_operations_a_parameter_and_token() -> None:
    """Short sequences of a large model, whose embeddings are tied: its head is a product, its embedding none."""
    _, architecture = study_of("math", "qwen2.5-math-1.5b")
    found = operations(architecture, 1000, 1000)
    assert sum(found.values()) == pytest.approx(6 * architecture.parameters * 1000, rel=0.01)


def test_checkpointing_computes_the_layers_once_more() -> None:
    study, architecture = study_of("math", "qwen2.5-math-1.5b")
    plain, _ = study_of("math", "qwen2.5-math-1.5b", "training.gradient_checkpointing=false")
    more, less = work(study, architecture, 10), work(plain, architecture, 10)
    tokens = 256 * 3072
    assert more.step - less.step == operations(architecture, tokens, tokens * 3072)["forward"]
    assert more.operations == 10 * more.step


SLOW = Device("slow", peak=1e12, bandwidth=1e11, memory=GB)


def test_time_worked_out_by_hand() -> None:
    """Training by operations alone; a decoding step reads the weights and half-full keys and values once."""
    study, architecture = study_of(
        "math", "qwen2.5-math-1.5b", "evaluation.tasks={aime24: {max_new_tokens: 1000}}", "confirm=null"
    )
    needed = work(study, architecture, 10)
    assert needed.decoding == ((30 * 16, 1000, 64),)
    training, judging = device_seconds(study, architecture, needed, SLOW, 0.5)
    assert training == pytest.approx(10 * needed.step / 0.5e12)
    weights, of_a_token = 2 * architecture.parameters, 2 * 28 * 256 * 2
    steps = 30 * 16 * 1000 / 64
    by_reading = (weights + 64 * 500 * of_a_token) / 0.5e11
    by_computing = 2 * architecture.parameters * 64 / 0.5e12
    assert by_computing > by_reading  # of this device; below, of one that reads slowly
    assert judging == pytest.approx(needed.held_out / 0.5e12 + steps * by_computing)
    reads = Device("reads slowly", 1e15, 1e11, GB)
    assert device_seconds(study, architecture, needed, reads, 0.5)[1] == pytest.approx(
        needed.held_out / 0.5e15 + steps * by_reading
    )


def test_a_sweep_is_its_trials_each_judged_on_its_part_of_the_problems() -> None:
    """4 baselines and 16 searched trials on half of the problems, then 15 on the other half."""
    study, architecture = study_of("math", "qwen2.5-math-1.5b")
    needed = work(study, architecture, 10)
    training, judging = device_seconds(study, architecture, needed, SLOW, 0.4)
    expected = (35 * training + 35 * 0.5 * judging) / 3600
    assert sweep_device_hours(study, architecture, needed, SLOW, 0.4) == pytest.approx(expected)
    assert sweep_device_hours(study, architecture, needed, SLOW, 0.8) == pytest.approx(expected / 2)


def test_a_step_of_writing_takes_a_while_however_small_the_model() -> None:
    """30 layers of SmolLM2, a millisecond each, on a device that would need less."""
    study, architecture = study_of("gsm8k", "smollm2-135m")
    needed = work(study, architecture, 10)
    fast = Device("fast", 1e18, 1e15, GB)
    assert device_seconds(study, architecture, needed, fast, 1.0)[1] == pytest.approx(
        needed.held_out / 1e18 + 256 * 4 * 320 / 64 * 0.030
    )


@pytest.mark.parametrize(
    ("asha", "steps", "expected"),
    [
        (None, 800, [(16, 800)]),
        ({"grace_period": 50, "reduction_factor": 4}, 800, [(12, 50), (3, 200), (1, 800)]),
        ({"grace_period": 50, "reduction_factor": 4}, 801, [(12, 50), (3, 200), (1, 801)]),
        ({"grace_period": 800, "reduction_factor": 4}, 800, [(16, 800)]),
        ({"grace_period": 100, "reduction_factor": 2}, 500, [(8, 100), (4, 200), (2, 400), (2, 500)]),
    ],
)
def test_what_halving_costs(
    make_config: Make, asha: dict[str, int] | None, steps: int, expected: list[tuple[int, float]]
) -> None:
    study = make_config(
        search={"trials": 16, "asha": asha},
        evaluation={"generation": {"answer_pattern": "#(.+)"}, "every": 50},
        training=TrainingConfig(steps=steps, global_batch_size=8, precision="fp32").model_dump(),
    )
    found = legs(study, steps)
    assert found == expected
    assert sum(count for count, _ in found) == 16
