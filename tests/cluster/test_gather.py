"""Workers are waited for, and what was reserved is free again. On the local Ray of two cores."""

import os
import subprocess
import sys

import pytest
import ray

from tests.cluster.filling import FOLDER

pytestmark = pytest.mark.usefixtures("ray_cluster")


def gathered(*options: str) -> subprocess.CompletedProcess[str]:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(FOLDER / "gather.py"), *options]
    environment = os.environ | {"RAY_ADDRESS": address}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_all_that_fit_come_and_the_command_follows() -> None:
    for _ in range(2):  # the first left nothing reserved
        done = gathered("--workers", "2", "--each", "CPU=1", "--", "bash", "-c", "echo then; exit 3")
        assert done.returncode == 3, done.stderr
        assert done.stdout == "There is room for 2 of 2 workers with {'CPU': 1.0}.\nthen\n"


def test_those_that_came_in_time_are_enough() -> None:
    done = gathered("--workers", "3", "--each", "CPU=1", "--minutes", "0.05")
    assert (done.returncode, done.stdout) == (0, "There is room for 2 of 3 workers with {'CPU': 1.0}.\n")


def test_none_is_not() -> None:
    done = gathered("--workers", "1", "--each", "GPU=1", "--minutes", "0.05", "--", "echo", "then")
    assert done.returncode == 1
    assert "then" not in done.stdout
