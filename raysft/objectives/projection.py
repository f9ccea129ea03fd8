"""The output layer as the head needs it: a tile of the vocabulary at a time, by the fastest products torch offers.

Logits are fp32 whatever the weights are, because bf16 logits would move tokens across a threshold. On a CPU oneDNN's
linear reaches the processor's fp32 peak where `mm` does not; on CUDA `mm` sums bf16 products into fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

TILE = {"cpu": 4096, "cuda": 32768}  # columns of logits held at once; on a CPU a tile of them stays in its caches


@dataclass(frozen=True)
class Projection:
    """z = cap tanh(scale (rows @ weight.T + bias) / cap); weight [V, H], bias [V] or None; cap None: no soft-capping.

    dtype: of the operands of the gradients' products.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        """Of logits, softmax and sums."""
        return torch.promote_types(self.dtype, torch.float32)

    def widened(self, tile: torch.Tensor) -> torch.Tensor:
        """A tile [tile, H] in fp32 (float64 for float64); valid until the next call."""
        return tile if tile.dtype == self.wide else self._scratch[: tile.shape[0]].copy_(tile)

    @cached_property
    def _scratch(self) -> torch.Tensor:
        """Memory for one tile: fresh pages for each of them would cost a tenth of the time."""
        return torch.empty(self.weight[next(self.tiles())].shape, dtype=self.wide, device=self.weight.device)

    def tiles(self) -> Iterator[slice]:
        """Slices of the vocabulary, in order."""
        size, width = self.weight.shape[0], TILE.get(self.weight.device.type, TILE["cuda"])
        return (slice(start, min(start + width, size)) for start in range(0, size, width))

    def logits(self, rows: torch.Tensor, tile: slice) -> torch.Tensor:
        """rows [C, H] -> [C, tile], fp32 (float64 for float64)."""
        z = self._product_with(rows, self.weight[tile])
        if self.bias is not None:
            z += self.bias[tile]
        if self.scale != 1:
            z *= self.scale
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def _product_with(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """rows [C, H] @ weight.T [H, tile], exact products summed in fp32."""
        if rows.is_cuda and self.dtype.itemsize == 2:
            return _product(rows.to(self.dtype), weight.to(self.dtype).t())
        return _product(rows.to(self.wide), self.widened(weight).t())

    def place(self, labels: torch.Tensor, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each label [C] lies in the tile, and its column there (else one at the edge): [C, 1] each."""
        column = labels[:, None] - tile.start
        edge = column.clamp(0, tile.stop - tile.start - 1)
        return column == edge, edge

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """What soft-capping multiplies the gradient of `logits` by; None: nothing."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


@dataclass(frozen=True)
class Gradients:
    """Sums over chunks of the gradients of the layer's parameters, fp32 (float64 for float64); None: not wanted."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None

    def add(
        self, layer: Projection, tile: slice, logits: torch.Tensor, rows: torch.Tensor, into: torch.Tensor | None
    ) -> None:
        """Take in the gradient [C, tile] of the logits of rows [C, H]; that of the rows is added to `into` [C, H].

        logits may be overwritten.
        """
        if layer.scale != 1:
            logits *= layer.scale
        if self.bias is not None:
            self.bias[tile] += logits.sum(0)
        logits = logits.to(layer.dtype)
        if into is not None:
            into += _product(logits, layer.weight[tile].to(layer.dtype))
        if self.weight is None:
            return
        rows = rows.to(layer.dtype)
        if self.weight.dtype == layer.dtype:
            self.weight[tile].addmm_(logits.t(), rows)
        else:
            self.weight[tile] += layer.widened(_product(logits.t(), rows))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [M, K] @ b [K, N]: [M, N], of their dtype; on CUDA fp32, into which bf16 products are summed there."""
    if a.is_cuda and a.dtype.itemsize == 2:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.device.type == "cpu" and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b)
