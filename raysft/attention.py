"""Attention within the samples of a packed row, for every architecture that transformers lets choose its attention.

A packed row holds samples one behind the other. On a GPU in half precision torch's variable-length flash attention
takes it as it is; elsewhere each sample is a product of its own. So the cost grows with the samples' lengths squared
and not with the row's, and no T x T mask is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from raysft.data.batch import Batch

NAME = "raysft_packed"
HALF = (torch.float16, torch.bfloat16)
# In bf16 on a CPU the backward pass of torch's own attention takes longer than that of plain matrix products.
PLAIN_LENGTHS = range(64, 1025)
_packed: ContextVar[bool] = ContextVar("packed", default=False)


@dataclass(frozen=True)
class Packing:
    """Where the samples of a row lie. lengths: tokens of each, in order."""

    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each token's position in its sample: LongTensor [1, T]."""
        return torch.cat([torch.arange(n) for n in self.lengths])[None].to(self.device)

    @cached_property
    def borders(self) -> torch.Tensor:
        """Where samples begin, and the end: int32 [samples + 1]."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.device)


class Memory(Protocol):
    """Keys and values of tokens that went through the model before; [B, key heads, T, D] each."""

    def take(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
        """Those of a packed row in one attention layer: what is attended to later."""

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: "Layer"
    ) -> torch.Tensor:
        """query [B, heads, 1, D] of one new token a row, with its key and value, which are taken too -> the same."""


@contextmanager
def within_samples(batch: Batch) -> Iterator[dict[str, Any]]:
    """What a decoder is called with in this context, beside the tokens, so that no sample sees another or padding."""
    device = batch.input_ids.device
    if batch.packed:
        packing = Packing(batch.lengths, device)
        asked: dict[str, Any] = {"position_ids": packing.positions, "packing": packing}
    else:
        at = torch.arange(batch.input_ids.shape[1], device=device)
        asked = {"attention_mask": (at < torch.tensor(batch.lengths, device=device)[:, None]).long()}
    token = _packed.set(batch.packed)
    try:
        yield asked
    finally:
        _packed.reset(token)


@contextmanager
def from_memory(memory: Memory, positions: torch.Tensor) -> Iterator[dict[str, Any]]:
    """What a decoder is called with in this context, beside one new token a row, which sees what the memory holds.

    positions: LongTensor [B, 1].
    """
    token = _packed.set(True)  # who sees whom is the memory's affair
    try:
        yield {"position_ids": positions, "memory": memory}
    finally:
        _packed.reset(token)


@contextmanager
def chosen(model: PreTrainedModel) -> Iterator[bool]:
    """The attention of this file in the model, where it lets it be chosen (then True); afterwards its own again."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield packs(model)
    finally:
        model.set_attn_implementation(before)


def packs(model: PreTrainedModel) -> bool:
    """Whether the model keeps attention within the samples of a packed row."""
    return bool(model.config._attn_implementation == NAME)


@dataclass(frozen=True)
class Layer:
    """Of an attention layer. window: a token sees so many, itself among them; softcap: as in Gemma 2."""

    scale: float | None
    dropout: float
    window: int | None
    softcap: float | None

    def flash_can(self, query: torch.Tensor) -> bool:
        return query.is_cuda and query.dtype in HALF and self.dropout == 0 and self.softcap is None


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None = None,
    memory: Memory | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [B, heads, T, D], key and value [B, key heads, S, D] -> [B, T, heads, D].

    Without a packing or a memory (padded rows) it is transformers' sdpa attention, which knows no soft cap.
    """
    layer = Layer(
        options.get("scaling"), options.get("dropout", 0.0), options.get("sliding_window"), options.get("softcap")
    )
    if memory is not None and packing is None:
        return memory.attend(module, query, key, value, layer).transpose(1, 2).contiguous(), None
    if memory is not None:
        memory.take(module, key, value)
    if packing is not None and layer.flash_can(query):
        return _flash(query, key, value, packing, layer), None
    if packing is not None:
        samples = zip(*(x.split(packing.lengths, dim=2) for x in (query, key, value)), strict=True)
        out = torch.cat([_product(q, k, v, layer, None) for q, k, v in samples], dim=2)
    elif layer.softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    else:
        out = _product(query, key, value, layer, attention_mask)
    return out.transpose(1, 2).contiguous(), None


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, layer: Layer) -> torch.Tensor:
    """torch's variable-length flash attention: [1, heads, T, D] each -> [1, T, heads, D]."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    longest = max(packing.lengths)
    before = -1 if layer.window is None else layer.window - 1
    out = varlen_attn(
        q, k, v, packing.borders, packing.borders, longest, longest,
        scale=layer.scale, window_size=(before, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return cast(torch.Tensor, out)[None]


def _product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: Layer, mask: torch.Tensor | None
) -> torch.Tensor:
    """[B, heads, T, D], [B, key heads, S, D] twice -> [B, heads, T, D]; mask: which S each T sees, None: causal."""
    length = query.shape[2]
    plainly = layer.softcap is not None or (
        query.device.type == "cpu" and query.dtype == torch.bfloat16 and length in PLAIN_LENGTHS
    )
    if mask is None and (plainly or (layer.window or length) < length):
        mask = _band(length, layer.window or length, query.device)
    if plainly:
        return _plain_product(query, key, value, layer, cast(torch.Tensor, mask))
    return scaled_dot_product_attention(
        query, key, value, mask, layer.dropout, is_causal=mask is None, scale=layer.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def _plain_product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: Layer, mask: torch.Tensor
) -> torch.Tensor:
    """By the whole matrix of scores, which a soft cap needs; shapes as above, mask broadcastable to [B, 1, T, S]."""
    groups = query.shape[1] // key.shape[1]
    query = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)  # [B, key heads, groups * T, D]
    scores = (query * (layer.scale or query.shape[-1] ** -0.5)) @ key.transpose(2, 3)
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    # The least number and not -inf: a padding token that sees nothing would get NaN, and hand it on.
    unseen = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device)
    unseen.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    scores = scores.unflatten(2, (groups, -1)) + (unseen if mask.dim() == 2 else unseen.unsqueeze(2))
    weights = torch.dropout(scores.softmax(-1), layer.dropout, train=layer.dropout > 0)
    return (weights.flatten(2, 3) @ value).unflatten(2, (groups, -1)).flatten(1, 2)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Causal, and no further back than the window: bool [length, length]."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None]
    return (distance >= 0) & (distance < window)


def _mask(**asked: Any) -> torch.Tensor | None:
    """transformers' mask function."""
    return None if _packed.get() else sdpa_mask(**asked)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
