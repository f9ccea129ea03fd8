"""A causal language model whose forward pass gives the summed objective; what every engine trains."""

import copy
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from raysft.backbone import hidden_states, shifted
from raysft.config import TrainingConfig
from raysft.objectives import Objective, linear_objective

Model = PreTrainedModel | PeftModel


class ObjectiveHead(nn.Module):
    """The model's own output weight, used by the fused head.

    It holds the very Parameter of the output layer (tied or not), because ZeRO-3 gathers a module's weights only
    around that module's forward pass.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, output: nn.Linear, objective: Objective) -> None:
        super().__init__()
        self.weight = output.weight
        self.register_parameter("bias", output.bias)
        self.objective = objective

    def forward(
        self, rows: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """rows [N, H], targets [N] -> loss_sum, supervised, kept, logp [N]."""
        return linear_objective(rows, self.weight, targets, self.objective, bias=self.bias)


class SFTModel(nn.Module):
    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.causal_lm = model
        output = plain(model).get_output_embeddings()
        assert isinstance(output, nn.Linear)  # raysft.backbone.load_model refuses anything else
        self.head = ObjectiveHead(output, objective)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """All [B, T]; labels -100 are skipped. Returns linear_objective's four over the B(T-1) predictions."""
        hidden = hidden_states(plain(self.causal_lm), input_ids, attention_mask)
        return self.head(*shifted(hidden, labels))


def plain(model: Model) -> PreTrainedModel:
    """The Hugging Face model itself, LoRA layers (where there are any) left in place."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def trainable_model(base: PreTrainedModel, training: TrainingConfig) -> Model:
    """A fresh copy of the base weights for one trial, with LoRA and gradient checkpointing as configured."""
    model: Any = copy.deepcopy(base)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if training.lora is None:
        return model
    lora = training.lora
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def merged(model: Model) -> PreTrainedModel:
    """The model with its LoRA layers merged into the weights; the argument may be changed by it."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
