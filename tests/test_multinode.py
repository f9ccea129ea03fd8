"""A sweep as a team runs it: on several nodes, with a bucket, and MLflow on PostgreSQL. All of it is real."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from pyarrow import fs

from raysft.config import SweepConfig
from raysft.store import Store
from raysft.sweepfile import dump
from tests.conftest import free_port, wait_until
from tests.training.workers import run_group, train

Make = Callable[..., SweepConfig]
STEPS, INTERVAL = 60, 5


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of an empty database on loopback, and the environment that holds its password."""
    if shutil.which("initdb") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # PostgreSQL refuses root
    password, port = secrets.token_hex(16), free_port()
    (folder / "password").write_text(password)
    if as_user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
    data = str(folder / "data")
    make = ["initdb", "--username=mlflow", "--auth=scram-sha-256", f"--pwfile={folder}/password", "-D", data]
    subprocess.run([*as_user, *make], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    start = ["pg_ctl", "-D", data, "-l", str(folder / "log"), "-o", options, "--wait", "start"]
    subprocess.run([*as_user, *start], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    yield f"postgresql://mlflow@127.0.0.1:{port}/postgres", {"PGPASSWORD": password}
    subprocess.run([*as_user, "pg_ctl", "-D", data, "--mode", "fast", "stop"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


@pytest.fixture
def server(postgres: tuple[str, dict[str, str]], s3: str, bucket: str, tmp_path: Path) -> Iterator[str]:
    """An `mlflow server` on that database, whose artifacts lie in the bucket."""
    database, password = postgres
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rsplit(":", 1)[1]]
    command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", f"{bucket}/mlflow"]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = os.environ | password | settings | {"MLFLOW_S3_ENDPOINT_URL": s3}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        try:
            return requests.get(f"{uri}/health", timeout=5).ok
        except requests.RequestException:
            return False

    wait_until(answers)
    yield uri
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def cluster(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head that runs no work and two nodes of one core."""
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets want a short name
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    script = Path(__file__).with_name("cluster_of_nodes.py")
    process = subprocess.Popen(
        [sys.executable, str(script), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_TMPDIR": folder, "PYTHONPATH": paths()},
    )
    assert process.stdout
    address = process.stdout.readline().strip()
    yield address
    process.communicate("")
    shutil.rmtree(folder, ignore_errors=True)


def paths() -> str:
    return os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kept(uri: str) -> list[str]:
    files, root = fs.FileSystem.from_uri(uri)
    found = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return [info.path.removeprefix(f"{root}/") for info in found if info.type == fs.FileType.File]


@pytest.mark.slow
@pytest.mark.faults
def test_nodes_that_share_a_bucket_alone_run_a_sweep_that_another_machine_resumes(
    make_config: Make, tmp_path: Path, bucket: str, server: str, cluster: str
) -> None:
    """Each group stands on both nodes. The first driver is killed; the second has nothing on its disk."""
    config = make_config(
        output=str(tmp_path / "first"),
        storage=f"{bucket}/runs",
        training={"steps": STEPS, "checkpoint_every": INTERVAL},
        workers={"count": 2, "resources": {"CPU": 1}, "max_failures": 10},
        search={"metric": "eval/nll"},
        tracking={"uri": server, "register_as": "made"},
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(dump(config))
    command = [sys.executable, "-m", "raysft", "sweep", str(file), "--address", cluster]
    environment = os.environ | {"PYTHONPATH": paths()}

    def checkpoints() -> int:
        return sum(name.endswith("manifest.json") for name in kept(f"{bucket}/runs"))

    first = subprocess.Popen(command, env=environment, cwd=tmp_path)
    wait_until(lambda: checkpoints() or first.poll() is not None)
    assert first.poll() is None
    first.kill()
    first.wait()
    begun = Store(tmp_path / "begun", f"{bucket}/runs/{config.name}/tiny/trials").names(tmp_path / "begun")
    again = [*command, "--resume", "--set", f"output={tmp_path / 'second'}"]
    second = subprocess.run(again, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stdout + second.stderr
    assert begun == ["0000"]

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 6
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert client.search_model_versions("name = 'made-tiny'")
    study = Store(tmp_path / "looked-at", f"{bucket}/runs/{config.name}/tiny")
    study.pull(study.folder)
    trials = {path.name: path for path in (study.folder / "trials").iterdir()}
    assert sorted(trials) == [f"{number:04d}" for number in range(5)]
    best = min(trials, key=lambda name: json.loads((trials[name] / "end.json").read_text())["metrics"]["eval/nll"])
    assert [name for name, path in trials.items() if (path / "model" / "model.safetensors").exists()] == [best]
    assert parent.data.tags["best_trial"] == best
    assert {"report.html", "optuna.db"} <= {name.rsplit("/", 1)[-1] for name in kept(f"{bucket}/runs")}, second.stdout
    assert not list((tmp_path / "second" / ".nodes").rglob("*.*")), "workers left files behind"
    for run in runs:
        if run is not parent:
            trial_id = run.data.tags["raysft.trial_id"]
            points = client.get_metric_history(run.info.run_id, "train/loss")
            assert [point.step for point in points] == list(range(1, STEPS + 1))
            assert [point.value for point in points] == losses(trials[trial_id])
    told = (config.for_backbone("tiny").model_dump_json(), (trials["0000"] / "trial.json").read_text())
    run_group(2, tmp_path / "meet", train, *told, tmp_path / "undisturbed")
    assert losses(trials["0000"]) == losses(tmp_path / "undisturbed")
