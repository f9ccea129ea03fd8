"""LoRA trials side by side: several adapters on one copy of the base weights, which passes over all their rows at once.

Each trial runs the ordinary loop in a thread of its own, with its own adapter, objective, optimizer and clip. Only the
pass through the decoder is shared: the trials' packed rows lie one behind the other as a single row, each part with
its own adapter. One thread computes at a time, so a trial sees the others in nothing but the round-off of products
over more rows: its losses are bitwise those of a trial alone only where such products round alike.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from raysft.backbone import ROUND_OFF, hidden_states
from raysft.config import TrainingConfig
from raysft.data.batch import Batch
from raysft.training.clock import Clock
from raysft.training.engine import PlainEngine
from raysft.training.model import Model, SFTModel, plain, trainable_model

ADAPTER = "default"  # peft's name where a model has one
PROOF = (7, 5)  # tokens of the two lanes on which sharing is proved


@dataclass(eq=False)
class Lane:
    """One trial's part in the shared pass.

    wants: the batch whose hidden states it waits for, or "backward"; None while it computes by itself.
    shared: its part of the pass, [1, T, H], with the graph; own: the same without it, whose gradient its head computes.
    """

    model: Model
    layers: list[LoraLinear]
    clock: Clock
    wants: Batch | str | None = None
    graph: bool = False
    shared: torch.Tensor | None = None
    own: torch.Tensor | None = None


@dataclass(frozen=True)
class Part:
    layers: list[LoraLinear]
    tokens: int


class Lanes:
    """The meeting point of the trials of one process."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._coming: set[int] = set()  # threads that have a trial but no lane yet
        self._lanes: list[Lane] = []
        self._parts: list[Part] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held by the one thread that computes. The others are waited for at the next pass."""
        self._coming.add(threading.get_ident())
        with self._turn:
            try:
                yield
            finally:
                self._coming.discard(threading.get_ident())
                self._serve()

    def join(self, model: Model, clock: Clock) -> Lane:
        lane = Lane(model, lora_layers(model), clock)
        self._lanes.append(lane)
        self._coming.discard(threading.get_ident())
        return lane

    def leave(self, lane: Lane) -> None:
        self._lanes.remove(lane)
        self._serve()

    def hidden_states(self, lane: Lane, batch: Batch) -> torch.Tensor:
        """Of one lane's batch, [1, T, H]: a leaf, whose gradient `backward` takes on."""
        lane.graph = torch.is_grad_enabled()
        self._meet(lane, batch)
        assert lane.own is not None
        return lane.own

    def backward(self, lane: Lane) -> None:
        """Add to the adapter's gradients what follows from that of the lane's hidden states."""
        self._meet(lane, "backward")

    def _meet(self, lane: Lane, wants: Batch | str) -> None:
        """Wait until every lane wants something; the last one to come does it for all."""
        lane.wants = wants
        self._serve()
        with lane.clock("waiting"):
            self._turn.wait_for(lambda: lane.wants is None)

    def _serve(self) -> None:
        """Backward first: a graph is gone, and its memory free, before there is another."""
        if not self._lanes or self._coming or any(lane.wants is None for lane in self._lanes):
            return
        served = [lane for lane in self._lanes if lane.wants == "backward"]
        if served:
            self._pass_back(served)
        else:
            served = self._lanes
            self._pass_on(served)
        for lane in served:
            lane.wants = None
        self._turn.notify_all()

    def _pass_on(self, lanes: list[Lane]) -> None:
        batches = [lane.wants for lane in lanes if isinstance(lane.wants, Batch)]
        tokens = [batch.input_ids.shape[1] for batch in batches]
        self._parts = [Part(lane.layers, count) for lane, count in zip(lanes, tokens, strict=True)]
        with torch.set_grad_enabled(any(lane.graph for lane in lanes)), side_by_side(self._parts):
            parts = hidden_states(plain(lanes[0].model), joined(batches)).split(tokens, dim=1)
        for lane, part in zip(lanes, parts, strict=True):
            lane.shared = part if lane.graph else None
            lane.own = part.detach().requires_grad_(lane.graph)

    def _pass_back(self, lanes: list[Lane]) -> None:
        shared, gradients = [], []
        for lane in lanes:
            if lane.shared is not None and lane.own is not None and lane.own.grad is not None:
                shared.append(lane.shared)
                gradients.append(lane.own.grad)
            lane.shared = lane.own = None
        if shared:
            with side_by_side(self._parts):  # gradient checkpointing computes the layers again
                torch.autograd.backward(shared, gradients)


class LaneEngine(PlainEngine):
    """A trial's engine among others'. model: its adapter on the shared base weights."""

    def __init__(self, model: SFTModel, training: TrainingConfig, device: torch.device, lanes: Lanes) -> None:
        super().__init__(model, training, device)
        self.lanes = lanes
        self.lane = lanes.join(model.causal_lm, model.clock)
        model.hidden_states = partial(lanes.hidden_states, self.lane)

    def backward(self, loss: torch.Tensor, boundary: bool) -> None:
        loss.backward()
        self.lanes.backward(self.lane)
        self._collect()

    def close(self) -> None:
        self.lanes.leave(self.lane)
        super().close()


def lora_layers(model: nn.Module) -> list[LoraLinear]:
    """In the model's order."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def joined(batches: list[Batch]) -> Batch:
    """Packed rows one behind the other as one."""
    return Batch(
        torch.cat([batch.input_ids for batch in batches], dim=1),
        torch.cat([batch.labels for batch in batches], dim=1),
        tuple(length for batch in batches for length in batch.lengths),
        packed=True,
    )


@contextmanager
def side_by_side(parts: list[Part]) -> Iterator[None]:
    """While this lasts, the first part's model gives each part of a row to that part's adapter."""
    first = parts[0].layers
    for layers in zip(*(part.layers for part in parts), strict=True):
        layers[0].forward = partial(_forward, layers, [part.tokens for part in parts])
    try:
        yield
    finally:
        for layer in first:
            del layer.forward


def _forward(layers: tuple[LoraLinear, ...], tokens: list[int], row: torch.Tensor) -> torch.Tensor:
    """base(x) + scale B A x: row [1, T, in] -> [1, T, out]."""
    whole: torch.Tensor = layers[0].base_layer(row)
    added = [_delta(layer, part) for layer, part in zip(layers, row.split(tokens, dim=1), strict=True)]
    return (whole + torch.cat(added, dim=1)).to(whole.dtype)


def _delta(layer: LoraLinear, part: torch.Tensor) -> torch.Tensor:
    down, up = cast(nn.Linear, layer.lora_A[ADAPTER]), cast(nn.Linear, layer.lora_B[ADAPTER])
    return up(down(part.to(down.weight.dtype))) * layer.scaling[ADAPTER]


@torch.no_grad()
def why_in_turn(base: PreTrainedModel, training: TrainingConfig) -> str | None:
    """Why trials of this model cannot share its pass; None where they can, proved with two random adapters."""
    if dropped := sorted(
        name for name, value in base.config.get_text_config().to_dict().items() if _drops(name, value)
    ):
        return f"it has dropout ({', '.join(dropped)}), whose random numbers would not be those of a trial alone"
    with torch.random.fork_rng(devices=[]):
        models = [_loud(trainable_model(base, training, shared=True)) for _ in PROOF]
    if any(isinstance(module, LoraLayer) and not isinstance(module, LoraLinear) for module in models[0].modules()):
        return "it has adapters on layers that are not linear"
    batches = [_counted(tokens, base.device) for tokens in PROOF]
    alone = [hidden_states(plain(model), batch) for model, batch in zip(models, batches, strict=True)]
    parts = [Part(lora_layers(model), tokens) for model, tokens in zip(models, PROOF, strict=True)]
    try:
        with side_by_side(parts):
            together = hidden_states(plain(models[0]), joined(batches))
    except Exception as error:  # layers that are not given whole rows, such as experts
        return f"its layers do not take whole rows ({(str(error).strip() or repr(error)).splitlines()[0]})"
    expected = torch.cat(alone, dim=1)
    close = ROUND_OFF[expected.dtype] * float(expected.abs().max())
    if not torch.allclose(together, expected, rtol=0, atol=close):
        return "its hidden states beside others are not those of a trial alone"
    return None


def _drops(name: str, value: Any) -> bool:
    """Whether a setting of a model makes it drop something: attention_dropout, resid_pdrop, layerdrop, ..."""
    return "drop" in name and isinstance(value, float) and value > 0


def _loud(model: Any) -> Any:
    """With adapters that add something, which fresh ones do not."""
    for layer in lora_layers(model):
        nn.init.normal_(cast(nn.Linear, layer.lora_B[ADAPTER]).weight, std=0.1)
    return model.eval()


def _counted(tokens: int, device: torch.device) -> Batch:
    row = torch.arange(tokens, device=device)[None]
    return Batch(row, row, (tokens,), packed=True)
