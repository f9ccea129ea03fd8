"""Floating-point operations that a step of training needs, and what the GPU at hand could do in that time."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from raysft.backbone import decoder
from raysft.devices import find_device
from raysft.training.model import Model, plain


class Flops:
    """Of a model: its matrix products alone, as is usual, two operations a weight and token, every expert counted."""

    def __init__(self, model: Model) -> None:
        whole = plain(model)
        layers = [module for module in decoder(whole).modules() if not isinstance(module, nn.Embedding)]
        weights = [weight for layer in layers for weight in _own(layer)]
        self.forward = 2 * sum(map(_size, weights))
        self.gradients = 2 * sum(_size(weight) for weight in weights if weight.requires_grad)
        text = whole.config.get_text_config()
        heads = getattr(text, "num_attention_heads", 0)
        width = heads * getattr(text, "head_dim", text.hidden_size // max(1, heads))
        self.attention = 2 * width * text.num_hidden_layers  # causal: half of Q K^T and of the product with V
        output = cast(nn.Linear, whole.get_output_embeddings()).weight
        self.head = 2 * _size(output) * (3 if output.requires_grad else 2)

    def step(self, lengths: Sequence[int], supervised: float) -> float:
        """Operations of forward and backward passes over samples of these lengths, nothing computed twice."""
        tokens, squares = sum(lengths), sum(n * n for n in lengths)
        products = tokens * (2 * self.forward + self.gradients)
        return float(products + 3 * squares * self.attention + supervised * self.head)


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.dim() >= 2]


def _size(weight: torch.Tensor) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))  # under ZeRO-3 only a part lies here


def peak() -> float | None:
    """bf16 operations a second of this process's GPU; None on a CPU and for a GPU that is not in the list."""
    if not torch.cuda.is_available():
        return None
    device = find_device(torch.cuda.get_device_name())
    return device.peak if device else None
