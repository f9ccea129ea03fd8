"""A sweep on a cluster of this machine whose nodes are lost, one after another, without a word.

    python tests/faults/nodes.py FOLDER BACKBONE TRAIN LOSSES

The head runs no work; two nodes have a core each. After every loss a new node comes, as an autoscaler sends one.
Only nodes on which a group works are lost: some as soon as its workers live, most when the trials have trained on.
Prints as JSON how many, and how the trials ended.
"""

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors
from rich.console import Console

from raysft.config import SweepConfig
from raysft.progress import Progress
from raysft.sweep.driver import StudyResult, sweep

INTERVAL = 10


def config_of(folder: Path, backbone: str, train: str, losses: int) -> SweepConfig:
    values: dict[str, Any] = {
        "name": "nodes",
        "output": str(folder / "runs"),
        "backbones": [{"name": "tiny", "path": backbone}],
        "data": {"train": {"kind": "file", "path": train}, "template": "plain", "max_length": 64, "heldout_samples": 8},
        "training": {
            "steps": 150 * losses,
            "global_batch_size": 8,
            "micro_batch_tokens": 40,
            "learning_rate": 3e-3,
            "precision": "fp32",
            "checkpoint_every": INTERVAL,
        },
        "search": {"trials": 1, "metric": "eval/nll", "sampler": "random"},
        "space": {"exponent": {"low": 0.1, "high": 2.0}},
        "workers": {"max_failures": 100},
        "probe": {"samples": 16},
        "export": "none",
    }
    return SweepConfig.model_validate(values)


def busy_nodes() -> list[str]:
    """Ids of the nodes on which workers of a group live."""
    here = ray.get_runtime_context().gcs_address
    alive = list_actors(here, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.node_id for actor in alive if "RayTrainWorker" in actor.class_name]


def steps_logged(trials: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in trials.glob("*/metrics.jsonl"))


def lose_nodes(
    cluster: Cluster, losses: int, trials: Path, over: threading.Event, draw: random.Random
) -> dict[str, int]:
    """Lose a node on which a group works, again and again, until there were enough or the sweep is over."""
    lost, due = 0, 0
    while lost < losses and not over.wait(draw.uniform(1, 5)):
        on = busy_nodes()
        found = [node for node in cluster.worker_nodes if node.node_id in on]
        if not found or steps_logged(trials) < due:
            continue
        cluster.remove_node(draw.choice(found), allow_graceful=False)
        cluster.add_node(num_cpus=1)
        lost += 1
        due = steps_logged(trials) + draw.choice((0, 1, INTERVAL, 5 * INTERVAL))
    return {"lost": lost}


def main(folder: Path, backbone: str, train: str, losses: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    over = threading.Event()
    config = config_of(folder, backbone, train, losses)
    results: list[StudyResult] = []

    def run() -> None:
        try:
            results.extend(sweep(config, Progress(Console(file=sys.stderr))))
        finally:
            over.set()

    sweeping = threading.Thread(target=run)
    sweeping.start()  # Cluster wants the main thread
    told = lose_nodes(cluster, losses, config.folder / "tiny" / "trials", over, random.Random(0))
    sweeping.join()
    print(json.dumps(told | {"trials": {row.trial_id: row.status for row in results[0].trials}}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
