"""Memory: against what autograd and the engine keep, against peft, and numbers by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from raysft.architecture import Architecture
from raysft.backbone import hidden_states, pack
from raysft.config import SweepConfig
from raysft.data.batch import Batch
from raysft.devices import named_device
from raysft.estimate import (
    CONTEXT,
    When,
    changes_that_fit,
    fits,
    head_bytes,
    kept_activations,
    memory,
    rows_that_fit,
    tokens_of_a_pass,
    trained_parameters,
    writing,
)
from raysft.objectives import Power, linear_objective
from raysft.training.engine import PlainEngine
from raysft.training.model import SFTModel, trainable_model
from tests.architectures import MODELS, made, study_of

Make = Callable[..., SweepConfig]
GB = 1e9

LENGTHS = (48, 40, 56, 48)  # below those that a CPU computes in bf16 by whole matrices of scores


# --- activations ----------------------------------------------------------------------------------------------------


def kept(model: PreTrainedModel) -> float:
    """Bytes that autograd keeps for each token of a packed row, weights aside: each storage once."""
    tokens = torch.randint(0, 96, (1, sum(LENGTHS)))
    batch = Batch(tokens, tokens, LENGTHS, packed=True)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in weights:
            found[at] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(model, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values()) / tokens.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_those_that_autograd_keeps(name: str, dtype: torch.dtype) -> None:
    """Within 12 %: this CPU copies the attention's output once, which flash attention on a GPU does not."""
    model, architecture = made(name)
    model = model.to(dtype)
    assert pack(model) is None
    expected = kept(model)
    assert kept_activations(architecture, dtype.itemsize, checkpointing=False) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_checkpointed_activations_are_the_layers_inputs_and_one_layer(name: str) -> None:
    """Backward computes a layer anew while the others' inputs wait: what one layer alone keeps comes on top."""
    key = "n_layer" if name == "gpt2" else "num_hidden_layers"
    one, _ = made(name, **{key: 1})
    assert pack(one) is None
    expected = kept(one)
    model, architecture = made(name)
    assert pack(model) is None
    whole = kept(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    inputs = kept(model)
    assert inputs < 0.2 * whole
    estimated = kept_activations(architecture, 4, checkpointing=True)
    assert estimated == pytest.approx(inputs + expected, rel=0.15)


def test_tokens_of_a_pass(make_config: Make) -> None:
    """40 tokens a micro-batch, samples of at most 64, eight a step."""
    assert tokens_of_a_pass(make_config()) == 64
    many = {"micro_batch_tokens": 4096, "global_batch_size": 8, "steps": 6}
    assert tokens_of_a_pass(make_config(training=many)) == 8 * 64
    assert tokens_of_a_pass(make_config(training=many, workers={"count": 2})) == 4 * 64
    assert tokens_of_a_pass(make_config(training=many | {"micro_batch_tokens": 100})) == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_head_keeps_what_is_counted_of_it(dtype: torch.dtype) -> None:
    """Between its passes the weight's gradient in fp32 and the rows'; the rest of the count is for a moment alone."""
    _, a = made("llama")
    rows, kept_bytes = 300, 0
    hidden = torch.randn(rows, a.hidden, dtype=dtype, requires_grad=True)
    weight = torch.randn(a.vocabulary, a.hidden, dtype=dtype, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept_bytes
        kept_bytes += tensor.nbytes if tensor.is_floating_point() else 0
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        linear_objective(hidden, weight, torch.randint(0, a.vocabulary, (rows,)), Power())
    number, matrix = dtype.itemsize, a.vocabulary * a.hidden
    assert kept_bytes == 4 * matrix + number * rows * a.hidden
    chunk = min(256 if number == 2 else 112, rows) * a.vocabulary * (number + 12)
    own = 2 * matrix if number == 2 else 0
    assert head_bytes(a, number, rows, True, "cpu") == kept_bytes + own + number * rows * a.hidden + chunk
    assert head_bytes(a, number, rows, False, "cpu") == 2 * number * rows * a.hidden + chunk


# --- weights, gradients, optimizer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_adapters_are_as_large_as_pefts(make_config: Make, targets: Any) -> None:
    model, architecture = made("llama")
    training = {"lora": {"rank": 3, "target_modules": targets}}
    study = make_config(training=training)
    adapted = trainable_model(model, study.training)
    assert trained_parameters(study, architecture) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained_parameters(make_config(), architecture) == architecture.parameters


def parts(study: SweepConfig, architecture: Architecture) -> dict[str, tuple[int, When, bool]]:
    found = memory(study, architecture).parts
    assert len({part.name for part in found if not part.on_host}) == sum(not part.on_host for part in found)
    return {part.name: (part.bytes, part.when, part.on_host) for part in found}


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_plain_engine_holds_what_is_counted_for_lanes(make_config: Make, lanes: int) -> None:
    """One engine a lane, on one base model."""
    model, architecture = made("llama")
    model = model.to(torch.bfloat16)
    training = {"precision": "bf16", "lora": {"rank": 2, "alpha": 4}, "steps": 6, "global_batch_size": 8}
    study = make_config(training=training, workers={"lanes": max(2, lanes)})
    study = study.model_copy(update={"workers": study.workers.model_copy(update={"lanes": lanes})})
    engines = []
    for _ in range(lanes):
        engine = PlainEngine(SFTModel(trainable_model(model, study.training, shared=True)), study.training, CPU)
        for master in engine.master:
            master.grad = torch.zeros_like(master)
        engine.optimizer.step()
        engines.append(engine)
    trained = [p for e in engines for p in e.working]
    moments = [t for e in engines for s in e.optimizer.state.values() for t in s.values() if t.numel() > 1]
    found = parts(study, architecture)
    base = sum(p.nbytes for p in model.parameters())
    assert found["weights"][0] == base + sum(p.nbytes for p in trained)
    assert found["optimizer: fp32 copy of the weights"][0] == sum(m.nbytes for e in engines for m in e.master)
    assert found["optimizer: AdamW's two moments"][0] == sum(t.nbytes for t in moments)
    if lanes > 1:
        assert found["gradients"][0] == sum(m.grad.nbytes for e in engines for m in e.master)


CPU = torch.device("cpu")
ON_GPU = {"resources": {"CPU": 1, "GPU": 1}}


@pytest.mark.parametrize(
    ("stage", "precision", "offload", "state", "gradients", "host"),
    # Bytes a parameter in two workers: of weights and optimizer, of gradients that stay, of the host. At stage 3, all
    # weights of a model so small are also kept whole.
    [
        (0, "fp32", "none", 4 + 8, 4, 4 + 4),
        (0, "bf16", "none", 2 + 12, 2, 2 + 2),
        (1, "bf16", "none", 2 + 6, 4, 2 + 2),
        (2, "bf16", "none", 2 + 6, 2, 2 + 2),
        (3, "bf16", "none", 1 + 2 + 6, 2, 2 + 2),
        (2, "fp32", "none", 4 + 6, 2, 4 + 4),
        (2, "bf16", "optimizer", 2, 0, 2 + 6 + 5 + 2),
        (3, "bf16", "all", 2, 0, 2 + 1 + 6 + 5 + 2),
    ],
)
def test_state_worked_out_by_hand(
    make_config: Make, stage: int, precision: str, offload: str, state: float, gradients: float, host: float
) -> None:
    _, architecture = made("llama")
    training = {"precision": precision, "steps": 6, "global_batch_size": 8}
    study = make_config(training=training, zero={"stage": stage, "offload": offload}, workers={"count": 2, **ON_GPU})
    found = memory(study, architecture)
    n = architecture.parameters
    here = [part for part in found.parts if not part.on_host]
    always = sum(part.bytes for part in here if part.when == "always" and part.name != "gradients") - CONTEXT
    assert always == state * n
    assert sum(part.bytes for part in here if part.name == "gradients") == gradients * n
    assert found.host == host * n


def test_a_worker_without_a_gpu_has_all_of_it_on_the_host(make_config: Make) -> None:
    _, architecture = made("llama")
    here, there = memory(make_config(), architecture), memory(make_config(workers=ON_GPU), architecture)
    assert (here.device, here.evaluating) == (0, 0)
    assert here.host > 0 < there.device
    assert there.host == 8 * architecture.parameters


def test_the_fullest_moment_counts(make_config: Make) -> None:
    _, architecture = made("llama")
    found = memory(make_config(zero={"stage": 3}, workers=ON_GPU), architecture)

    def held(*when: When) -> int:
        return sum(part.bytes for part in found.parts if part.when in when and not part.on_host)

    assert held("passes") > held("update") > 0 < held("evaluation")
    assert found.device == held("always", "training", "passes")
    assert found.evaluating == held("always", "evaluation")


def test_an_objective_that_looks_at_the_base_model_needs_it(make_config: Make) -> None:
    _, architecture = made("llama")
    asft = {"baselines": [{"type": "asft"}]}
    assert parts(make_config(**asft), architecture)["base model of asft"][0] == 4 * architecture.parameters
    assert "base model of asft" not in parts(make_config(), architecture)
    lora = {"lora": {"rank": 2}, "steps": 6, "global_batch_size": 8}
    assert "base model of asft" not in parts(make_config(**asft, training=lora), architecture)
    searched = {"space": {"objectives": [{"type": "asft"}]}}
    assert "base model of asft" in parts(make_config(**searched), architecture)


# --- what fits ------------------------------------------------------------------------------------------------------


def test_seven_billion_parameters_in_two_workers_do_not_fit_one_h100_each() -> None:
    """2 bytes of weights, and in two workers 6 of AdamW's state and 2 of gradients, a parameter: 76 GB."""
    study, architecture = study_of("math", "qwen2.5-math-7b")
    assert memory(study, architecture).device > 10 * 7.6 * GB
    assert not fits(study, architecture, named_device("h100").memory)
    small, its = study_of("math", "qwen2.5-math-1.5b")
    assert fits(small, its, named_device("h100").memory)


@pytest.mark.parametrize(
    ("name", "backbone", "gigabytes"),
    [
        *(("math", "llama-3.1-8b", gigabytes) for gigabytes in (20, 24, 40, 84)),
        *(("figlet", "qwen2.5-1.5b", gigabytes) for gigabytes in (8, 10, 16)),
    ],
)
def test_every_change_that_is_named_fits(name: str, backbone: str, gigabytes: int) -> None:
    study, architecture = study_of(name, backbone)
    available = gigabytes * GB
    assert not fits(study, architecture, available)
    named = changes_that_fit(study, architecture, available)
    assert named
    for change in named:
        changed, _ = study_of(name, backbone, *change.split(" with "))
        assert fits(changed, architecture, available)
    assert len({change.count(" with ") for change in named}) == 1  # as few as are enough


def test_where_nothing_helps_nothing_is_named() -> None:
    study, architecture = study_of("math", "llama-3.1-8b")
    assert changes_that_fit(study, architecture, 1 * GB) == []


def test_workers_of_half_a_gpu_share_it() -> None:
    study, architecture = study_of("math", "qwen2.5-math-1.5b")
    needed = memory(study, architecture).device
    assert fits(study, architecture, needed)
    halves, _ = study_of("math", "qwen2.5-math-1.5b", "workers.resources={CPU: 1, GPU: 0.5}")
    assert not fits(halves, architecture, 1.9 * needed)
    assert fits(halves, architecture, 2 * needed)


def test_keys_and_values_of_completions_by_hand() -> None:
    """deepseek-math: 30 layers of 32 key heads of 128, for keys and values in bf16: 491,520 bytes a token."""
    study, architecture = study_of("math", "deepseek-math-7b")
    assert writing(study, architecture) == 64 * 4096 * 491_520
    assert rows_that_fit(study, architecture, 23.2 * GB) == 11
    assert 11 * 4096 * 491_520 < 23.2 * GB < 12 * 4096 * 491_520
    limited, _ = study_of("math", "deepseek-math-7b", "evaluation.tasks={math500: {max_new_tokens: 9000}}")
    assert writing(limited, architecture) == 64 * 4096 * 491_520  # it has no more positions
