"""Jobs on a real head node with token authentication: submitted, followed, stopped and resumed."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raysft.config import PAPER_BASELINES
from raysft.demo import Recipe, make_demo
from raysft.errors import InputError
from raysft.submit import job_request
from tests.conftest import wait_until

SWEEPS = Path(__file__).parents[1] / "sweeps"
RAY = Path(sys.executable).with_name("ray")
QUICK = Recipe(weak_steps=2, mid_steps=1, strong_steps=2, check_every=1, strong_accuracy=(0, 1), validation=4)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a head node of two cores, and the environment whose token it takes."""
    port, dashboard, agent = free_ports(3)
    folder = tmp_path_factory.mktemp("head")
    # Jobs run the `python` that the head found on its PATH, as in an activated environment.
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_raylet_start_wait_time_s": "200"}  # the machine may be busy
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "2"),
        *("--node-ip-address", "127.0.0.1", "--port", str(port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(agent), "--object-store-memory", "200000000"),
    ]
    log = folder / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{dashboard}"
    listed = [str(RAY), "job", "list", "--address", address]
    wait_until(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
    wait_until(lambda: process.poll() is not None or subprocess.run(listed, env=environment).returncode == 0)
    assert process.poll() is None, log.read_text()
    del environment["RAY_AUTH_MODE"]  # submit finds out by itself
    yield address, environment
    parts = psutil.Process(process.pid).children(recursive=True)
    for part in [process, *parts]:  # asked to end, they take half a minute
        with suppress(psutil.NoSuchProcess):
            part.kill()
    process.wait()
    last = Path("/tmp/ray/ray_current_cluster")  # left behind, it makes each group's end 12 s slower on this machine
    if last.exists() and last.read_text().strip().endswith(f":{port}"):
        last.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: sweep files and the demo's materials, quickly made."""
    shutil.copytree(SWEEPS, tmp_path / "sweeps")
    make_demo(tmp_path / "runs" / "demo-materials", 0, lambda text: None, QUICK)
    return tmp_path


@pytest.fixture
def submit(head: tuple[str, dict[str, str]], folder: Path) -> Callable[..., str]:
    """Runs `raysft submit sweeps/debug.yaml` in the user's folder; returns what it said."""
    address, environment = head

    def run(*options: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "raysft", "submit", "sweeps/debug.yaml", "--address", address, *options]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def runs_in(folder: Path) -> tuple[list[Run], list[Run]]:
    """Parents and children of the debug sweep."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("debug")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    return [r for r in runs if "mlflow.parentRunId" not in r.data.tags], [
        r for r in runs if "mlflow.parentRunId" in r.data.tags
    ]


@pytest.mark.slow
def test_a_job_runs_the_sweep(submit: Callable[..., str], folder: Path) -> None:
    said = submit()
    assert "SUCCEEDED" in said
    assert "weak 5/5" in said, "the job's lines are followed"
    assert said.startswith("Submitted raysubmit_"), "Ray's own lines are left out"
    parents, children = runs_in(folder)
    assert [p.info.status for p in parents] == ["FINISHED"]
    assert [c.info.status for c in children] == ["FINISHED"] * 5
    labels = {c.info.run_name for c in children}
    assert labels >= {baseline.label() for baseline in PAPER_BASELINES}
    assert all("eval/accuracy" in c.data.metrics and "capability/mean_probability" in c.data.metrics for c in children)


@pytest.mark.slow
@pytest.mark.faults
def test_a_stopped_job_has_saved_and_resumes(
    submit: Callable[..., str], head: tuple[str, dict[str, str]], folder: Path
) -> None:
    """STOPS=20 stops it so often, each time after a checkpoint more, and takes minutes."""
    address, environment = head
    stops = int(os.environ.get("STOPS", "1"))
    settings = (
        f"training.steps={200 * stops} training.checkpoint_every=20 evaluation.every=null workers.max_concurrent=1"
    )
    longer = [part for setting in settings.split() for part in ("--set", setting)]
    trials = folder / "runs" / "debug" / "weak" / "trials"
    seen: set[Path] = set()
    for stop in range(stops):
        said = submit("--no-wait", *longer, *(["--resume"] if stop else []))
        job = re.search(r"raysubmit_\w+", said)
        assert job, said
        wait_until(lambda: not set(trials.glob("*/checkpoints/step-*")) <= seen)  # noqa: B023
        stopped = subprocess.run(
            [str(RAY), "job", "stop", "--address", address, job[0]],
            env=environment | {"RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        logs = [str(RAY), "job", "logs", "--address", address, job[0]]
        told = subprocess.run(logs, env=environment | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True).stdout
        assert "Interrupted. Continue by submitting the same again, with --resume." in told
        seen |= set(trials.glob("*/checkpoints/step-*"))
        parents, children = runs_in(folder)
        assert [p.info.status for p in parents] == ["KILLED"]
        assert {c.info.status for c in children} <= {"KILLED", "FINISHED"}
        assert "KILLED" in {c.info.status for c in children}

    said = submit("--resume", *longer)
    assert "SUCCEEDED" in said
    parents, children = runs_in(folder)
    assert [p.info.status for p in parents] == ["FINISHED"]
    assert [c.info.status for c in children] == ["FINISHED"] * 5


def test_a_dashboard_that_is_away_is_refused(folder: Path) -> None:
    command = [sys.executable, "-m", "raysft", "submit", "sweeps/debug.yaml", "--address", "http://127.0.0.1:9"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "did not take the job" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wrong_token_is_refused(head: tuple[str, dict[str, str]], folder: Path) -> None:
    address, environment = head
    command = [sys.executable, "-m", "raysft", "submit", "sweeps/debug.yaml", "--address", address]
    wrong = environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = subprocess.run(command, cwd=folder, env=wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_request_names_everything_absolutely(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    request = job_request(Path("sweeps/debug.yaml"), ["name=other"], True)
    assert request["entrypoint"].startswith("python -m raysft sweep sweeps/debug.yaml --set name=other")
    assert request["entrypoint"].endswith("--resume")
    for path in ("runs", "runs/demo-materials/backbones/weak", "runs/demo-materials/data/train.jsonl"):
        assert f'"{folder}/{path}"' in request["entrypoint"]
    assert set(request["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"}
    Path("sweeps/more.yaml").write_text("training: {steps: 9}\noutput: elsewhere\n")
    laid_over = job_request(Path("sweeps/debug.yaml"), [], False, [folder / "sweeps" / "more.yaml"])["entrypoint"]
    assert laid_over.startswith("python -m raysft sweep sweeps/debug.yaml --with sweeps/more.yaml --set ")
    assert f'output="{folder}/elsewhere"' in laid_over
    monkeypatch.chdir(folder / "runs")
    with pytest.raises(InputError, match="outside the working directory"):
        job_request(folder / "sweeps" / "debug.yaml", [], False)
    shutil.copy(folder / "sweeps" / "debug.yaml", "debug.yaml")
    with pytest.raises(InputError, match=r"more.yaml: is outside the working directory"):
        job_request(Path("debug.yaml"), [], False, [folder / "sweeps" / "more.yaml"])
