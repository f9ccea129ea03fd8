"""Groups that fit, and nodes that an autoscaler would bring, on the local Ray of two cores."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.sweep.capacity import groups_at_once, slots_that_fit
from tests.conftest import free_port, wait_until

Make = Callable[..., SweepConfig]


def test_groups_are_counted_node_by_node(make_config: Make) -> None:
    node = {"Resources": {"CPU": 4.0, "GPU": 1.0}, "Alive": True}
    assert slots_that_fit(make_config(), [node, node]) == 8
    assert slots_that_fit(make_config(workers={"count": 2}), [node]) == 2
    assert slots_that_fit(make_config(workers={"count": 2, "resources": {"CPU": 1, "GPU": 1}}), [node, node]) == 1
    assert slots_that_fit(make_config(workers={"max_concurrent": 1}), [node]) == 1
    assert slots_that_fit(make_config(workers={"resources": {"CPU": 0.5}}), [node]) == 8
    with pytest.raises(InputError, match="one group needs 4 x"):
        slots_that_fit(make_config(workers={"count": 4, "resources": {"GPU": 1}}), [node])


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_there_is_not_waited_for(make_config: Make) -> None:
    config = make_config(workers={"max_concurrent": 2, "wait_minutes": 1000})
    for _ in range(2):  # the first has reserved nothing
        assert groups_at_once(config) == 2
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.usefixtures("ray_cluster")
def test_those_that_came_in_time_are_enough_but_none_is_not(make_config: Make) -> None:
    wait = {"max_concurrent": 3, "wait_minutes": 0.05}
    assert groups_at_once(make_config(workers=wait)) == 2
    with pytest.raises(InputError, match=r"let an autoscaler: workers\.wait_minutes"):
        groups_at_once(make_config(workers=wait | {"resources": {"GPU": 1}}))


@pytest.mark.slow
def test_an_autoscaler_brings_nodes_to_a_head_that_runs_no_work(make_config: Make, tmp_path: Path) -> None:
    """By Ray's own autoscaler, whose nodes are processes of this machine."""
    config = make_config(workers={"max_concurrent": 2, "wait_minutes": 3})
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets want a short name
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    port = free_port()
    where = {"gcs_address": f"{ray.util.get_node_ip_address()}:{port}"}
    (tmp_path / "cluster.json").write_text(json.dumps(SCALING | {"provider": SCALING["provider"] | where}))
    local = {"RAY_TMPDIR": folder, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONPATH": paths}
    local |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0", f"--port={port}"]
    head += ["--include-dashboard=false", f"--autoscaling-config={tmp_path / 'cluster.json'}"]
    with (tmp_path / "head.log").open("w") as log:
        started = subprocess.Popen(head, env=os.environ | local, stdout=log, stderr=log)
    asking = [sys.executable, "-c", ASKING, f"127.0.0.1:{port}", config.model_dump_json()]
    try:
        asked = subprocess.run(asking, env=os.environ | local, capture_output=True, text=True, timeout=300)
    finally:
        for process in [*psutil.Process(started.pid).children(recursive=True), started]:
            process.kill()
        started.wait()
        shutil.rmtree(folder, ignore_errors=True)
    assert asked.returncode == 0, asked.stderr + (tmp_path / "head.log").read_text()
    assert asked.stdout.splitlines()[-1] == "2 groups on 3 nodes", asked.stdout


SCALING: dict[str, Any] = {
    "cluster_name": "here",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "one-core": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
}
ASKING = """
import sys
import time
import ray
from raysft.config import SweepConfig
from raysft.sweep.capacity import groups_at_once

while True:
    try:
        ray.init(sys.argv[1], log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(1)
print(f"{groups_at_once(SweepConfig.model_validate_json(sys.argv[2]))} groups on {len(ray.nodes())} nodes", flush=True)
"""
