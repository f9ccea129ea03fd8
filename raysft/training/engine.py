"""What steps a model: the contract, and plain torch in one process, which is the oracle for DeepSpeed.

An engine belongs to one trial. Losses come to it already divided by the global count, so it only sums gradients over
micro-batches and ranks, clips the sum once, and steps.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from raysft.config import TrainingConfig
from raysft.data.batch import Batch
from raysft.objectives.head import AnyObjective, HeadOutput
from raysft.training.model import Model, SFTModel

MakeModel = Callable[[], Model]


class Engine(Protocol):
    def forward(self, batch: Batch, objective: AnyObjective) -> HeadOutput:
        """The head's (loss_sum, supervised, kept, logp) of one micro-batch."""

    def backward(self, loss: torch.Tensor, boundary: bool) -> None:
        """Add this micro-batch's gradient; `boundary` marks the last one before `step`."""

    def step(self, learning_rate: float) -> float:
        """Clip, step, clear the gradients. Returns the gradient's norm before clipping.

        Where that is not finite, the weights and the optimizer's state stay as they are.
        """

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer state. Collective."""

    def load(self, folder: Path, world: int) -> None:
        """Restore what `save` wrote in a group of `world` ranks. Collective."""

    def full_model(self) -> Model:
        """The model with whole weights on every rank, for evaluation and export. Collective."""

    def train(self, mode: bool) -> None:
        """Switch between training and evaluation mode."""

    def close(self) -> None:
        """Give back what the engine holds."""


def load_weights(path: Path | str, map_location: Any = None, classes: Sequence[Any] = ()) -> Any:
    """What torch.save wrote: tensors, numbers, texts, and instances of these classes.

    Raises UnpicklingError for whatever else a pickle asks for, which could be any program.
    """
    with torch.serialization.safe_globals(list(classes)):
        return torch.load(path, map_location=map_location, weights_only=True)


def adamw(parameters: list[torch.nn.Parameter], training: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
    )


class PlainEngine:
    """One process, no DeepSpeed. Under bf16 it keeps fp32 master weights and sums gradients in fp32."""

    def __init__(self, model: SFTModel, training: TrainingConfig, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.max_grad_norm = training.max_grad_norm
        self.working = [p for p in self.model.parameters() if p.requires_grad]
        self.master = [torch.nn.Parameter(p.detach().float().clone()) for p in self.working]
        self.optimizer = adamw(self.master, training)

    def forward(self, batch: Batch, objective: AnyObjective) -> HeadOutput:
        return self.model(batch.to(self.device), objective)

    def backward(self, loss: torch.Tensor, boundary: bool) -> None:
        loss.backward()
        self._collect()

    def _collect(self) -> None:
        """Add the working weights' gradients to the sums, in fp32."""
        for master, working in zip(self.master, self.working, strict=True):
            if working.grad is not None:
                gradient = working.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                working.grad = None

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self.master, self.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
            self._publish()
        self.optimizer.zero_grad()
        return float(norm)

    def save(self, folder: Path) -> None:
        torch.save({"master": self.master, "optimizer": self.optimizer.state_dict()}, folder / "plain.pt")

    def load(self, folder: Path, world: int) -> None:
        state: dict[str, Any] = load_weights(folder / "plain.pt", self.device)
        with torch.no_grad():
            for master, saved in zip(self.master, state["master"], strict=True):
                master.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self._publish()

    def full_model(self) -> Model:
        return self.model.causal_lm

    def train(self, mode: bool) -> None:
        self.model.train(mode)

    def close(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _publish(self) -> None:
        for working, master in zip(self.working, self.master, strict=True):
            working.copy_(master)
