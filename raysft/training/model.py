"""A causal language model whose forward pass gives the summed objective; what every engine trains."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from raysft.backbone import evaluating, hidden_states, output_transform, shifted
from raysft.config import TrainingConfig
from raysft.data.batch import Batch
from raysft.objectives import linear_objective
from raysft.objectives.head import AnyObjective, HeadOutput, Reference
from raysft.training.clock import Clock

Model = PreTrainedModel | PeftModel


class ObjectiveHead(nn.Module):
    """The model's own output weight, used by the fused head.

    It holds the very Parameter of the output layer (tied or not), because ZeRO-3 gathers a module's weights only
    around that module's forward pass: once, however many chunks the head takes and however few rows a rank has.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        output = model.get_output_embeddings()
        assert isinstance(output, nn.Linear)  # raysft.backbone.load_model refuses anything else
        self.weight = output.weight
        self.register_parameter("bias", output.bias)
        self.transform = output_transform(model)

    def forward(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor,
        objective: AnyObjective,
        base_rows: torch.Tensor | None = None,
        base_output: nn.Linear | None = None,
    ) -> HeadOutput:
        """rows [N, H], targets [N] -> loss_sum, supervised, kept, logp [N].

        base_rows [N, H]: the base model's, for objectives that need them; base_output: its output layer, if not this.
        """
        reference = None
        if base_rows is not None:
            output = base_output or self
            reference = Reference(base_rows, output.weight.detach(), output.bias)
        return linear_objective(
            rows, self.weight, targets, objective, bias=self.bias, reference=reference, **self.transform
        )


class SFTModel(nn.Module):
    """model: what is trained; base: the frozen model that an objective may look at, not needed under LoRA.

    clock: the trial's, on which the head, which computes the loss and its gradients at once, is a phase of its own.
    """

    def __init__(self, model: Model, base: PreTrainedModel | None = None, clock: Clock | None = None) -> None:
        super().__init__()
        self.causal_lm = model
        self.clock = clock or Clock()
        self.head = ObjectiveHead(plain(model))
        self.hidden_states: Callable[[Batch], torch.Tensor] = partial(hidden_states, plain(model))
        self._base = (base,)  # in a tuple, so that it is no part of what is trained, sharded and saved

    def forward(self, batch: Batch, objective: AnyObjective) -> HeadOutput:
        """linear_objective's four over the B(T-1) predictions of a batch of [B, T] tokens."""
        hidden = self.hidden_states(batch)
        base = self._base_side(batch) if objective.needs_reference else ()
        with self.clock("head"):
            return self.head(*shifted(hidden, batch.labels), objective, *base)

    @torch.no_grad()
    def _base_side(self, batch: Batch) -> tuple[torch.Tensor, nn.Linear | None]:
        """The base model's rows, and its output layer where it has one of its own."""
        (base,) = self._base
        if base is not None:
            hidden = hidden_states(base, batch)
            return shifted(hidden, batch.labels)[0], cast(nn.Linear, base.get_output_embeddings())
        assert isinstance(self.causal_lm, PeftModel)  # without LoRA there is a base
        with evaluating(self.causal_lm), self.causal_lm.disable_adapter():
            hidden = hidden_states(plain(self.causal_lm), batch)
        return shifted(hidden, batch.labels)[0], None


def plain(model: Model) -> PreTrainedModel:
    """The Hugging Face model itself, LoRA layers (where there are any) left in place."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def trainable_model(base: PreTrainedModel, training: TrainingConfig, shared: bool = False) -> Model:
    """A fresh model for one trial, with LoRA and gradient checkpointing as configured.

    shared: it holds the very weights of the base, which adapters leave alone; else a copy.
    """
    own = [*base.parameters(), *base.buffers()] if shared else []
    model: Any = copy.deepcopy(base, memo={id(tensor): tensor for tensor in own})
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
