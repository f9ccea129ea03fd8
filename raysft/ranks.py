"""The workers of one group as the training code sees them; a single process is a group of one.

Thin over torch.distributed, so that the same code runs in a plain process and in a Ray Train worker.
"""

from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """This process's place in the current process group. Every method is collective: all ranks call it."""

    def __init__(self, machine: str | None = None) -> None:
        """machine: whose files this rank sees, by any name; None: all see the same. Collective where it is named."""
        self.active = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if self.active else 0
        self.world: int = dist.get_world_size() if self.active else 1
        machines = self.gather(machine) if machine is not None else [None] * self.world
        self.keeps_files = machines.index(machine) == self.rank  # for all who see the same

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, on every rank; `values` stays unchanged."""
        if self.world == 1:
            return values.clone()
        on_gpu = dist.get_backend() == "nccl"  # which reduces nothing else
        total = values.to("cuda", copy=True) if on_gpu else values.clone()
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value in rank order, on every rank. Values are pickled: keep them small."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's part of a list that every rank holds: every world-th item from its rank on."""
        return items[self.rank :: self.world]
