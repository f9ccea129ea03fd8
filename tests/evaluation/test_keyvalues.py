"""Remembered keys and values against attention over each row's whole sequence, one row at a time."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysft.attention import Layer
from raysft.evaluation.keyvalues import KeyValues

CPU = torch.device("cpu")
HEADS, KEY_HEADS, KEY_SIZE, VALUE_SIZE = 4, 2, 3, 5
MODULE = nn.Identity()
Held = tuple[torch.Tensor, torch.Tensor]  # keys [key heads, tokens, KEY_SIZE], values


def random_tokens(count: int) -> Held:
    return tuple(torch.randn(KEY_HEADS, count, size, dtype=torch.float64) for size in (KEY_SIZE, VALUE_SIZE))  # type: ignore[return-value]


@dataclass
class Naive:
    """rows: all that each row has seen."""

    rows: list[Held]

    def attend(self, row: int, query: torch.Tensor, layer: Layer) -> torch.Tensor:
        """query [heads, 1, KEY_SIZE], of the row's last token."""
        key, value = (x.repeat_interleave(HEADS // KEY_HEADS, dim=0) for x in self.rows[row])
        scores = query @ key.transpose(1, 2) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if layer.window is not None:
            scores[..., : -layer.window] = -torch.inf
        return scores.softmax(-1) @ value


def read(lengths: list[int], samples: list[int]) -> tuple[KeyValues, Naive]:
    prompts = [random_tokens(length) for length in lengths]
    prompt_of = [i for i, count in enumerate(samples) for _ in range(count)]
    memory = KeyValues(lengths, prompt_of, [0] * len(prompt_of), CPU)
    memory.take(MODULE, *(torch.cat(parts, dim=1)[None] for parts in zip(*prompts, strict=True)))
    return memory, Naive([prompts[i] for i in prompt_of])


def step(memory: KeyValues, naive: Naive, layer: Layer) -> None:
    rows = len(naive.rows)
    assert memory.positions[:, 0].tolist() == [row[0].shape[1] for row in naive.rows]
    query = torch.randn(rows, HEADS, 1, KEY_SIZE, dtype=torch.float64)
    new = [random_tokens(1) for _ in range(rows)]
    naive.rows = [
        tuple(torch.cat(p, dim=1) for p in zip(*both, strict=True)) for both in zip(naive.rows, new, strict=True)
    ]  # type: ignore[misc]
    key, value = (torch.stack(parts) for parts in zip(*new, strict=True))
    found = memory.attend(MODULE, query, key, value, layer)
    expected = torch.stack([naive.attend(row, query[row], layer) for row in range(rows)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    memory.advance()


layers = st.builds(
    Layer,
    scale=st.sampled_from([0.5, 1.0]),
    dropout=st.just(0.0),
    window=st.sampled_from([None, 1, 3, 6]),
    softcap=st.sampled_from([None, 0.7]),
)
sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3)


@settings(max_examples=60)
@given(st.data(), layers, sizes)
def test_each_row_sees_its_prompt_and_itself(data: st.DataObject, layer: Layer, prompts: list[tuple[int, int]]) -> None:
    """Through steps, rows that leave, and others that come, of any age."""
    torch.manual_seed(data.draw(st.integers(0, 100)))
    memory, naive = read(*map(list, zip(*prompts, strict=True)))  # type: ignore[arg-type]
    for kind in data.draw(st.lists(st.sampled_from(["step", "step", "leave", "come"]), max_size=8)):
        if kind == "step":
            step(memory, naive, layer)
        elif kind == "leave":
            every = list(range(len(naive.rows)))
            kept = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
            memory, naive = memory.keep(kept), Naive([naive.rows[row] for row in kept])
        else:
            fresh, more = read(*map(list, zip(*data.draw(sizes), strict=True)))  # type: ignore[arg-type]
            memory, naive = memory.followed_by(fresh), Naive(naive.rows + more.rows)
    step(memory, naive, layer)


@pytest.mark.parametrize("window", [None, 70])
def test_buffers_grow(window: int | None) -> None:
    torch.manual_seed(0)
    memory, naive = read([3, 2], [2, 1])
    for _ in range(150):
        step(memory, naive, Layer(1.0, 0.0, window, None))


def test_a_prompt_is_held_once_for_all_its_samples() -> None:
    memory, _ = read([5, 4], [7, 7])
    assert memory.prompts[MODULE].key.shape == (2, KEY_HEADS, 5, KEY_SIZE)
    assert memory.keep([0, 3, 5]).prompts[MODULE].key.shape[0] == 1
