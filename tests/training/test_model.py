"""The model that is trained: adapters, precision, tying, gradient checkpointing, and what is exported of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from raysft.backbone import load_model
from raysft.config import BackboneConfig, LoraConfig, SweepConfig, TrainingConfig
from raysft.data.batch import Batch
from raysft.objectives import Power, naive_objective
from raysft.objectives.anchored import ASFT
from raysft.objectives.head import Reference
from raysft.quiet import libraries_quiet
from raysft.training.model import SFTModel, merged, plain, trainable_model

Make = Callable[..., SweepConfig]


@pytest.fixture
def base(tiny_backbone: Path) -> PreTrainedModel:
    libraries_quiet()
    return load_model(BackboneConfig(name="tiny", path=str(tiny_backbone)))


def training(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"precision": "fp32", **changes})


def batch() -> tuple[Batch, torch.Tensor]:
    """Two samples of 10 and 7 tokens, the second padded, prompts not supervised; and their attention mask [2, 10]."""
    input_ids = torch.randint(1, 44, (2, 10), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(input_ids), input_ids.clone()
    labels[:, :3] = -100
    mask[1, 7:], labels[1, 7:], input_ids[1, 7:] = 0, -100, 0
    return Batch(input_ids, labels, (10, 7), packed=False), mask


def shake(model: torch.nn.Module) -> None:
    """LoRA's second matrix begins at 0: give the adapters something to say."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def gradients(base: PreTrainedModel, config: TrainingConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = SFTModel(trainable_model(base, config)).train()
    shake(model)
    model(batch()[0], Power(exponent=0.5))[0].backward()
    return {name: p.grad for name, p in model.causal_lm.named_parameters() if p.grad is not None}


def test_forward_is_the_objective_of_the_models_own_logits(base: PreTrainedModel) -> None:
    objective = Power(exponent=0.5, threshold=0.02)
    model = SFTModel(trainable_model(base, training()))
    samples, mask = batch()
    loss, supervised, kept, logp = model(samples, objective)
    logits = base.double()(input_ids=samples.input_ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    identity = torch.eye(logits.shape[1], dtype=logits.dtype)
    expected = naive_objective(logits, identity, samples.labels[:, 1:].flatten(), objective)
    assert (int(supervised), int(kept)) == (int(expected[1]), int(expected[2])) == (11, int(kept))
    assert 0 < int(kept) < 11
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)
    torch.testing.assert_close(logp.double(), expected[3], rtol=1e-5, atol=1e-6)


def test_a_trials_model_is_a_copy(base: PreTrainedModel) -> None:
    before = base.get_output_embeddings().weight.clone()
    model = trainable_model(base, training())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(base.get_output_embeddings().weight, before)
    assert not base.is_gradient_checkpointing


@pytest.mark.parametrize("tie", [True, False])
def test_head_trains_the_output_layers_own_weight(base: PreTrainedModel, tie: bool) -> None:
    """Tied, it is one Parameter with the embedding and gets both gradients; it is never counted twice."""
    base.config.tie_word_embeddings = tie
    if not tie:
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = SFTModel(trainable_model(base, training()))
    assert model.head.weight is plain(model.causal_lm).get_output_embeddings().weight
    assert (model.head.weight is plain(model.causal_lm).get_input_embeddings().weight) == tie
    assert len(list(model.parameters())) == len(list(base.parameters()))
    model(batch()[0], Power())[0].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_trains_adapters_only_in_the_models_precision(tiny_backbone: Path, precision: str) -> None:
    base = load_model(BackboneConfig(name="tiny", path=str(tiny_backbone)), precision)
    found = gradients(base, training(precision=precision, lora=LoraConfig(rank=2).model_dump()))
    model = trainable_model(base, training(precision=precision, lora=LoraConfig(rank=2).model_dump()))
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == learned.keys()
    assert all("lora_" in name for name in learned)
    assert len(learned) == 2 * 7 * 2  # both matrices of every linear layer but the head, in two layers
    assert {p.dtype for p in model.parameters()} == {base.dtype}


def test_lora_settings_are_taken(base: PreTrainedModel) -> None:
    lora = LoraConfig(rank=3, alpha=6, dropout=0.25, target_modules=["q_proj"])
    model = trainable_model(base, training(lora=lora.model_dump()))
    layer = plain(model).model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 2
    assert layer.lora_dropout["default"].p == 0.25
    assert not hasattr(plain(model).model.layers[0].self_attn.k_proj, "lora_A")


def test_merged_model_has_the_adapters_logits(base: PreTrainedModel) -> None:
    model = trainable_model(base, training(lora=LoraConfig(rank=2).model_dump())).eval()
    samples, mask = batch()
    input_ids = samples.input_ids
    with torch.no_grad():
        untouched = model(input_ids=input_ids, attention_mask=mask).logits
        torch.testing.assert_close(untouched, base(input_ids=input_ids, attention_mask=mask).logits)
        shake(model)
        adapted = model(input_ids=input_ids, attention_mask=mask).logits
        assert not torch.allclose(adapted, untouched, atol=1e-2)
        whole = merged(model)
        torch.testing.assert_close(
            whole(input_ids=input_ids, attention_mask=mask).logits, adapted, rtol=1e-4, atol=1e-5
        )
    assert type(whole) is type(base)
    assert whole.state_dict().keys() == base.state_dict().keys()


def test_merging_a_model_without_adapters_is_the_model(base: PreTrainedModel) -> None:
    model = trainable_model(base, training())
    assert merged(model) is model is plain(model)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2).model_dump()], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(base: PreTrainedModel, lora: dict[str, object] | None) -> None:
    expected = gradients(base, training(lora=lora))
    model = trainable_model(base, training(lora=lora, gradient_checkpointing=True))
    assert plain(model).is_gradient_checkpointing
    found = gradients(base, training(lora=lora, gradient_checkpointing=True))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, dropout=0.5).model_dump()], ids=["full", "lora"])
def test_reference_is_the_base_model_whatever_was_trained(
    base: PreTrainedModel, lora: dict[str, object] | None
) -> None:
    """A frozen copy, or the adapters switched off; neither gets a gradient, and dropout does not touch it."""
    objective = ASFT(kl_weight=2.0)
    model = SFTModel(trainable_model(base, training(lora=lora)), base if lora is None else None).train()
    if lora is None:
        with torch.no_grad():
            model.causal_lm.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    shake(model)
    samples, mask = batch()
    input_ids, labels = samples.input_ids, samples.labels
    torch.manual_seed(2)
    loss = model(samples, objective)[0]
    loss.backward()
    torch.manual_seed(2)
    with torch.no_grad():
        trained = model.causal_lm(input_ids=input_ids, attention_mask=mask).logits[:, :-1].flatten(0, 1).double()
        frozen = base(input_ids=input_ids, attention_mask=mask).logits[:, :-1].flatten(0, 1).double()
    identity = torch.eye(trained.shape[1], dtype=trained.dtype)
    reference = Reference(frozen, identity)
    expected = naive_objective(trained, identity, labels[:, 1:].flatten(), objective, reference=reference)
    assert float(loss.detach()) == pytest.approx(float(expected[0]), rel=1e-4)
    assert not torch.allclose(trained, frozen, atol=1e-3)
    assert all(p.grad is None for p in base.parameters())
    assert not any("_base" in name for name in model.state_dict())
    assert model.causal_lm.training
