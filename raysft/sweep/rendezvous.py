"""How the workers of a local Ray find each other. Torch's own store and gloo would listen on networks without a
password, and take pickles there.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


def torch_config(backend: str, folder: str) -> TorchConfig:
    """For a group on the Ray that this process is connected to. folder: an empty one of this user alone."""
    local = ray.util.get_node_ip_address() == "127.0.0.1"
    return ByFile(backend=backend, folder=folder) if local else TorchConfig(backend=backend)


@dataclass
class ByFile(TorchConfig):
    """By a file of this machine."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _ByFile


class _ByFile(_TorchBackend):
    """As its base class does it but for the store."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(_talk_on_loopback)
        ranks = range(len(worker_group))
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{backend_config.folder}/store",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in ranks
            ]
        )


def _talk_on_loopback() -> None:
    """gloo and NCCL would take the network that the machine's name leads to."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
