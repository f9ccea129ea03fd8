"""How many groups of a study a cluster holds, now or once its autoscaler has brought nodes."""

import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raysft.config import SweepConfig
from raysft.errors import InputError


def groups_at_once(config: SweepConfig) -> int:
    """Groups of a study (made by for_backbone) that fit at once; with workers.wait_minutes, after waiting for nodes.

    Raises InputError where not one fits.
    """
    workers = config.workers
    if workers.wait_minutes and workers.max_concurrent:
        _bring(workers.resources, workers.count * workers.max_concurrent, 60 * workers.wait_minutes)
    return slots_that_fit(config, [node for node in ray.nodes() if node["Alive"]])


def _bring(resources: dict[str, float], workers: int, seconds: float) -> None:
    """Ask for room for so many workers, and give it back once it is there or the time is over.

    Nodes that came idle for minutes before an autoscaler takes them away; a standing request would keep them for ever.
    """
    asked = [placement_group([{name: amount for name, amount in resources.items() if amount}]) for _ in range(workers)]
    deadline = time.monotonic() + seconds
    for group in asked:
        group.wait(max(0.0, deadline - time.monotonic()))
    for group in asked:
        remove_placement_group(group)


def slots_that_fit(config: SweepConfig, nodes: list[dict[str, Any]]) -> int:
    """Groups of a study that fit the cluster at once. Raises InputError where not one does."""
    workers = config.workers
    fits = 0
    for node in nodes:
        offered = node["Resources"]
        needed = {name: amount for name, amount in workers.resources.items() if amount > 0}
        fits += min((int(offered.get(name, 0) / amount + 1e-9) for name, amount in needed.items()), default=0)
    groups = fits // workers.count
    if groups == 0:
        offers = [{k: v for k, v in n["Resources"].items() if k in {"CPU", "GPU", *workers.resources}} for n in nodes]
        raise InputError(
            "workers",
            f"one group needs {workers.count} x {workers.resources}, but the cluster's nodes offer {offers}.",
            "Lower workers.count or workers.resources, add nodes, or let an autoscaler: workers.wait_minutes.",
        )
    return min(groups, workers.max_concurrent or groups)
