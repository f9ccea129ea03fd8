"""Keys and values that rows attend to while they are written: those of a prompt once, for all of its samples.

A row's own tokens lie in buffers that grow by whole blocks, so that a step writes one token's and copies nothing; rows
of different age share them, each with its own count. Works for every decoder whose attention is raysft.attention's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import nn

from raysft.attention import Layer

BLOCK = 64  # tokens by which the rows' buffers grow


@dataclass(frozen=True)
class Pair:
    """Of one attention layer; [prompts or rows, key heads, tokens, D] each, D of keys and values may differ."""

    key: torch.Tensor
    value: torch.Tensor

    def picked(self, at: torch.Tensor, tokens: int, room: int) -> "Pair":
        """Only the entries at `at`, and of their tokens the first so many, with room for `room` of them."""
        return Pair(*(_resized(x[:, :, :tokens].index_select(0, at), room) for x in (self.key, self.value)))

    def followed_by(self, other: "Pair", room: int) -> "Pair":
        pairs = zip((self.key, self.value), (other.key, other.value), strict=True)
        return Pair(*(torch.cat([_resized(x, room) for x in both]) for both in pairs))


def _resized(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """With as many tokens; new ones are zero, since what is masked must still be a number."""
    if x.shape[2] >= tokens:
        return x[:, :, :tokens]
    grown = x.new_zeros(*x.shape[:2], tokens, x.shape[3])
    grown[:, :, : x.shape[2]] = x
    return grown


@dataclass
class KeyValues:
    """raysft.attention's Memory. lengths: tokens of each prompt; prompt_of, counts: of each row, its prompt, and how
    many tokens of its own are held. Rows of a prompt lie side by side, in the order of the prompts.
    """

    lengths: list[int]
    prompt_of: list[int]
    counts: list[int]
    device: torch.device
    prompts: dict[nn.Module, Pair] = field(default_factory=dict)
    own: dict[nn.Module, Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._step: _Step | None = None
        self._unpacking: torch.Tensor | None = None

    @property
    def positions(self) -> torch.Tensor:
        """Of each row's next token: LongTensor [rows, 1]."""
        at = [self.lengths[prompt] + count for prompt, count in zip(self.prompt_of, self.counts, strict=True)]
        return torch.tensor(at, device=self.device)[:, None]

    def take(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
        """Of the prompts, packed in one row."""
        self.prompts[module] = Pair(self._unpacked(key), self._unpacked(value))

    def _unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, key heads, all tokens, D] -> [prompts, key heads, longest, D]; behind a prompt's end is anything."""
        longest = max(self.lengths)
        if self._unpacking is None:
            starts = torch.tensor([0, *self.lengths[:-1]]).cumsum(0)
            at = (starts[:, None] + torch.arange(longest)).clamp(max=sum(self.lengths) - 1)
            self._unpacking = at.flatten().to(self.device)
        spread = packed[0].index_select(1, self._unpacking).unflatten(1, (len(self.lengths), longest))
        return spread.transpose(0, 1).contiguous()

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: Layer
    ) -> torch.Tensor:
        """query [rows, heads, 1, D], key and value [rows, key heads, 1, D] -> [rows, heads, 1, D]."""
        if self._step is None:
            self._step = _Step(self)
        step, prompts = self._step, self.prompts[module]
        own = self._written(module, key, value, step)
        groups = query.shape[1] // key.shape[1]
        scale = query.shape[-1] ** -0.5 if layer.scale is None else layer.scale
        asked = (query * scale).reshape(len(self.counts), key.shape[1], groups, -1)
        scores = torch.cat(
            [
                step.from_grid(step.to_grid(asked) @ prompts.key.transpose(2, 3), groups),
                # Of whole buffers: in bf16 on a CPU a product with a part of them takes six times as long.
                (asked @ own.key.transpose(2, 3))[..., : step.tokens],
            ],
            dim=-1,
        )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if layer.softcap is not None:
            scores = torch.tanh(scores / layer.softcap) * layer.softcap
        if (bias := step.bias(layer.window)) is not None:
            scores += bias
        weights = scores.softmax(-1).to(value.dtype)
        of_prompt, of_own = weights.split([prompts.key.shape[2], step.tokens], dim=-1)
        out = step.from_grid(step.to_grid(of_prompt) @ prompts.value, groups) + of_own @ own.value[:, :, : step.tokens]
        return out.reshape(*query.shape[:3], -1)

    def _written(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor, step: "_Step") -> Pair:
        """The rows' own keys and values with those of this token; behind them the buffers have room."""
        held = self.own.get(module)
        if held is None:
            held = Pair(*(x.new_zeros(*x.shape[:2], BLOCK, x.shape[3]) for x in (key, value)))
        if held.key.shape[2] < step.tokens:
            held = Pair(*(_resized(x, step.tokens + BLOCK) for x in (held.key, held.value)))
        self.own[module] = held
        for buffer, new in ((held.key, key), (held.value, value)):
            if step.alike:
                buffer[:, :, step.tokens - 1] = new[:, :, 0]
            else:
                buffer[step.rows, :, step.counts] = new[:, :, 0]
        return held

    def advance(self) -> None:
        """The forward pass is over: each row holds one more token."""
        self.counts = [count + 1 for count in self.counts]
        self._step = None

    def keep(self, rows: Sequence[int]) -> "KeyValues":
        """Only these rows, in ascending order, and the prompts that they need."""
        prompt_of = [self.prompt_of[row] for row in rows]
        prompts = sorted(set(prompt_of))
        lengths, counts = [self.lengths[p] for p in prompts], [self.counts[row] for row in rows]
        kept = KeyValues(lengths, [prompts.index(p) for p in prompt_of], counts, self.device)
        at, at_prompts = (torch.tensor(list(indices), device=self.device) for indices in (rows, prompts))
        longest, tokens = max(lengths), max(counts)
        for module, pair in self.prompts.items():
            kept.prompts[module] = pair.picked(at_prompts, longest, longest)
        for module, pair in self.own.items():
            kept.own[module] = pair.picked(at, tokens, tokens + BLOCK)
        return kept

    def followed_by(self, other: "KeyValues") -> "KeyValues":
        """Both, the rows of the other one last."""
        shifted = [prompt + len(self.lengths) for prompt in other.prompt_of]
        lengths, counts = self.lengths + other.lengths, self.counts + other.counts
        both = KeyValues(lengths, self.prompt_of + shifted, counts, self.device)
        longest, tokens = max(lengths), max(counts)
        for module, pair in self.prompts.items():
            both.prompts[module] = pair.followed_by(other.prompts[module], longest)
        for module in self.own.keys() | other.own.keys():
            mine, theirs = self._own_or_nothing(module, other), other._own_or_nothing(module, self)
            both.own[module] = mine.followed_by(theirs, tokens + BLOCK)
        return both

    def _own_or_nothing(self, module: nn.Module, like: "KeyValues") -> Pair:
        """Rows that have written nothing yet have no buffers."""
        if module in self.own:
            return self.own[module]
        other = like.own[module]
        return Pair(*(x.new_zeros(len(self.counts), x.shape[1], 0, x.shape[3]) for x in (other.key, other.value)))


class _Step:
    """What all layers need in one step. tokens: the most that a row holds with the new one; alike: all hold as many.

    The samples of a prompt are one product with its keys. Where rows have ended, their places in that grid stay empty.
    """

    def __init__(self, memory: KeyValues) -> None:
        self.memory = memory
        self.tokens = max(memory.counts) + 1
        self.alike = min(memory.counts) + 1 == self.tokens
        self.counts = torch.tensor(memory.counts, device=memory.device)
        self.rows = torch.arange(len(memory.counts), device=memory.device)
        samples = [len(list(rows)) for _, rows in groupby(memory.prompt_of)]
        self.width = max(samples)
        self.full = min(samples) == self.width
        places = [prompt * self.width + sample for prompt, count in enumerate(samples) for sample in range(count)]
        self.places = torch.tensor(places, device=memory.device)
        self._biases: dict[int | None, torch.Tensor | None] = {}

    def to_grid(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, key heads, groups, D] -> [prompts, key heads, samples * groups, D]."""
        prompts = len(self.memory.lengths)
        if not self.full:
            grid = x.new_zeros(prompts * self.width, *x.shape[1:])
            x = grid.index_copy_(0, self.places, x)
        return x.reshape(prompts, self.width, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def from_grid(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        """The way back."""
        x = x.unflatten(2, (self.width, groups)).transpose(1, 2).flatten(0, 1)
        return x if self.full else x.index_select(0, self.places)

    def bias(self, window: int | None) -> torch.Tensor | None:
        """0 where a row sees a token, of its prompt and then its own, and the least number elsewhere; None: sees all.

        [rows, 1, 1, longest prompt + tokens]
        """
        if window not in self._biases:
            self._biases[window] = self._bias(window)
        return self._biases[window]

    def _bias(self, window: int | None) -> torch.Tensor | None:
        memory = self.memory
        if window is None and self.alike and min(memory.lengths) == max(memory.lengths):
            return None
        lengths = torch.tensor([memory.lengths[prompt] for prompt in memory.prompt_of], device=memory.device)[:, None]
        counts = self.counts[:, None]
        of_prompt = torch.arange(max(memory.lengths), device=memory.device)
        of_own = torch.arange(self.tokens, device=memory.device)
        sees = [of_prompt < lengths, of_own <= counts]
        if window is not None:
            sees[0] &= lengths + counts - of_prompt < window
            sees[1] &= counts - of_own < window
        seen = torch.cat(sees, dim=1)
        bias = torch.zeros(seen.shape, device=memory.device)
        return bias.masked_fill_(~seen, torch.finfo(bias.dtype).min)[:, None, None]
