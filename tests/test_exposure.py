"""Clusters and tracking servers that anybody could use are refused, before anything is started or written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from raysft.check import check
from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.exposure import ALLOW, IN_A_JOB, check_mlflow, check_ray
from raysft.progress import Progress
from raysft.submit import submit_sweep
from raysft.sweep.driver import sweep
from raysft.sweepfile import dump
from raysft.tracking import Evaluations

Make = Callable[..., SweepConfig]

pytestmark = pytest.mark.faults

HERE = ["localhost", "127.0.0.1", "127.8.9.1", "[::1]"]
ELSEWHERE = ["10.0.0.7", "192.168.1.5", "head.example", "0.0.0.0", "[::]", "[fe80::1]"]
ELSEWHERE += ["localhost.example", "127.0.0.1.example", "localhost@10.0.0.7", "127.0.0.1:x@head.example"]
RAY = ["{}:6379", "ray://{}:10001", "http://{}:8265", "https://{}"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without tokens; Ray's own tests of this process may have set a mode."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", ALLOW, IN_A_JOB):
        monkeypatch.delenv(name, raising=False)
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.parametrize("shape", RAY)
@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_cluster_elsewhere_needs_a_token(
    host: str, shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = shape.format(host)
    with pytest.raises(InputError, match="is on another machine") as refused:
        check_ray(address)
    assert "RAY_AUTH_MODE=token" in refused.value.fix
    assert f"{ALLOW}=1" in refused.value.fix
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    with pytest.raises(InputError):  # any local Ray leaves a token behind: it must be asked for
        check_ray(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_ray(address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(InputError):
        check_ray(address)
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("t" * 32)
    check_ray(address)


@pytest.mark.parametrize("shape", RAY)
@pytest.mark.parametrize("host", HERE)
def test_this_machines_cluster_needs_none(host: str, shape: str) -> None:
    check_ray(shape.format(host))


def test_what_ray_finds_by_itself_and_a_jobs_own_cluster_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (None, "", "auto", "local"):
        check_ray(address)
    monkeypatch.setenv(IN_A_JOB, "{}")
    check_ray("10.0.0.7:6379")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_tracking_server_elsewhere_needs_a_login(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = f"https://{host}:5000/path"
    with pytest.raises(InputError, match="is on another machine") as refused:
        check_mlflow(uri)
    assert "MLFLOW_TRACKING_USERNAME" in refused.value.fix
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    with pytest.raises(InputError):
        check_mlflow(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    check_mlflow(uri)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    check_mlflow(uri)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    (tmp_path / "home" / ".mlflow").mkdir(parents=True)
    (tmp_path / "home" / ".mlflow" / "credentials").touch()
    check_mlflow(uri)


def test_this_machines_server_and_databases_need_none() -> None:
    for uri in [None, "sqlite:///x.db", "postgresql://me@host/runs", *(f"http://{host}:5000" for host in HERE)]:
        check_mlflow(uri)


def test_who_knows_that_the_network_is_private_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, "1")
    check_ray("10.0.0.7:6379")
    check_mlflow("http://10.0.0.7:5000")


@pytest.mark.parametrize("by", ["--address", "RAY_ADDRESS"])
def test_no_sweep_goes_to_an_open_cluster(by: str, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which has no Ray yet."""
    config = make_config()
    config.output.parent.mkdir(exist_ok=True)
    file = config.output.parent / "sweep.yaml"
    file.write_text(dump(config))
    command = [sys.executable, "-m", "raysft", "sweep", str(file)]
    if by == "--address":
        command += ["--address", "10.0.0.7:6379"]
    else:
        monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.7:10001")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is on another machine" in done.stderr
    assert [path.name for path in config.output.rglob("*")] == ["tiny", "raysft.log"]


def test_no_job_goes_to_an_open_cluster(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is on another machine"):
        submit_sweep(tmp_path / "sweep.yaml", [], [], False, "http://10.0.0.7:8265", True, print)


def test_nothing_is_written_to_an_open_server(make_config: Make) -> None:
    config = make_config(tracking={"uri": "http://10.0.0.7:5000"})
    runs = (
        lambda: check(config),
        lambda: sweep(config, Progress(Console())),
        lambda: Evaluations(config.output, "http://10.0.0.7:5000"),
    )
    for run in runs:
        with pytest.raises(InputError, match="is on another machine"):
            run()
    assert not config.output.exists()
