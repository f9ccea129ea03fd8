"""Linear layers that keep their weights as oneDNN's products on a CPU want them.

Otherwise each product lays the weights out anew, which for the few rows of a decoding step takes up to half its time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import nn


@contextmanager
def prepacked(model: nn.Module, rows: int) -> Iterator[None]:
    """In this context the model's linear layers compute from copies of their weights, laid out for so many rows.

    The copies are a second set of weights in memory. Nothing changes on a GPU, nor where oneDNN cannot do it.
    """
    layers = [module for module in model.modules() if _suits(module)]
    for layer in layers:
        layer.forward = _from(layer, rows)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _suits(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _from(layer: nn.Module, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    linear = cast(nn.Linear, layer)
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
    return partial(_product, packed, linear.bias)


def _product(packed: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
