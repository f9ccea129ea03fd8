"""What is written and what listens while real sweeps run: no canary of a secret is found, only loopback listens."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raysft.config import SweepConfig
from raysft.submit import job_request
from raysft.sweepfile import dump

Make = Callable[..., SweepConfig]

CANARY = "sings-in-the-deep-mine"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY.replace('-', '')}0",
    "MLFLOW_TRACKING_USERNAME": "me",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-1",
    "MLFLOW_TRACKING_TOKEN": f"{CANARY}-2",
    "PGPASSWORD": f"{CANARY}-3",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-4",
    "RAY_AUTH_TOKEN": f"{CANARY}-5-and-long-enough-for-a-token",
}
BYTES = (CANARY.encode(), CANARY.replace("-", "").encode())

# An objective of somebody's package, whose error tells all that it knows.
LEAKY = """
import os
from typing import Literal
from raysft.objectives import Objective

class Leaky(Objective):
    type: Literal["leaky"] = "leaky"

    def f(self, logp):
        try:
            raise OSError("no access with " + os.environ["MLFLOW_TRACKING_PASSWORD"] + " " + os.environ["PGPASSWORD"])
        except OSError as error:
            url = "https://me:" + os.environ["AWS_SECRET_ACCESS_KEY"] + "@host/x"
            raise RuntimeError("401 for " + url + ", token=" + os.environ["HF_TOKEN"]) from error
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a command: with canaries, the leaky objective, and a folder of its own for Ray's files."""
    package = tmp_path / "package"
    (package / "leaky-1.dist-info").mkdir(parents=True)
    (package / "leaky-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (package / "leaky-1.dist-info" / "entry_points.txt").write_text("[raysft.objectives]\nleaky = leaky:Leaky\n")
    (package / "leaky.py").write_text(LEAKY)
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray_files = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: the paths of its sockets lie below
    where = {
        "PYTHONPATH": path,
        "RAY_TMPDIR": ray_files,
        "RAY_raylet_start_wait_time_s": "200",
    }  # the machine may be busy
    yield os.environ | SECRETS | where | {"RAY_AUTH_MODE": "token"}
    shutil.rmtree(ray_files, ignore_errors=True)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were: main sets its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def told_in(*folders: Path) -> list[str]:
    """Files below the folders, and their names, that hold a canary."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
        if any(canary in content or canary in str(path).encode() for canary in BYTES):
            found.append(str(path))
    return found


def tells(text: str) -> bool:
    return any(canary in text.encode() for canary in BYTES)


def written(config: SweepConfig, folder: Path, **changes: Any) -> Path:
    """A sweep file of the config, with values that it could not be loaded with here."""
    from raysft.yamltext import parse, write

    path = folder / "sweep.yaml"
    path.write_text(write(parse(dump(config), "").values | changes))
    return path


def tiny(make_config: Make, **changes: Any) -> SweepConfig:
    """Four steps of the four baselines, in one group of two workers."""
    config = make_config()
    training = config.training.model_dump() | {"steps": 4}
    workers = {"count": 2, "max_concurrent": 1, "max_failures": 0}
    return make_config(training=training, workers=workers, search={"trials": 0}, **changes)


@pytest.mark.slow
@pytest.mark.faults
def test_a_real_sweep_tells_no_secret_and_listens_to_this_machine_alone(
    make_config: Make, environment: dict[str, str], tmp_path: Path
) -> None:
    """With a trial whose error is full of secrets, and a tag that looks like one."""
    tracking = {"tags": {"note": f"password: {CANARY}"}, "register_as": "mine"}
    config = tiny(make_config, tracking=tracking)
    file = written(config, tmp_path, baselines=[{"type": "leaky"}])
    command = [sys.executable, "-m", "raysft", "sweep", str(file)]
    listening, told, output = set(), set(), tmp_path / "terminal.txt"
    with output.open("w") as terminal:
        process = psutil.Popen(command, stdout=terminal, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline:
            for one in [process, *process.children(recursive=True)]:
                try:
                    listening |= {(one.name(), c.laddr.ip) for c in one.net_connections() if c.status == "LISTEN"}
                    told |= {word[:3000] for word in one.cmdline() if tells(word)}
                except psutil.Error:  # it has just ended
                    continue
            time.sleep(0.3)
        if process.poll() is None:
            process.kill()
    said = output.read_text()
    assert process.wait() == 1, said
    assert "leaky: failed" in said
    assert "<redacted>" in said
    assert said.count(": finished") == 4
    assert not tells(said)
    assert told == set(), "in the list of processes"
    folder = config.output / "tiny" / "tiny"
    assert "<redacted>" in (folder / "trials" / "0004" / "end.json").read_text()
    assert list(folder.glob("trials/*/model/model.safetensors"))
    logs = Path(environment["RAY_TMPDIR"])
    assert list(logs.rglob("*RayTrainWorker*")) or list(logs.rglob("worker-*"))
    file.unlink()  # the user's own
    shutil.rmtree(tmp_path / "package")
    assert told_in(tmp_path, logs) == []

    names = {name for name, _ in listening}
    assert any("RayTrainWorker" in name for name in names)
    assert {"gcs_server", "raylet"} <= names
    assert {(name, ip) for name, ip in listening if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")} == set()


@pytest.mark.faults
def test_a_trial_in_this_process_tells_no_secret(
    make_config: Make, environment: dict[str, str], tmp_path: Path
) -> None:
    file = written(tiny(make_config), tmp_path)
    command = [sys.executable, "-m", "raysft", "train", str(file), "--in-process", "--objective"]
    for objective, code in (("leaky", 1), ("power", 0)):
        done = subprocess.run([*command, objective], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert not tells(done.stdout + done.stderr)
        assert code == 0 or "RuntimeError: 401 for https://me:<redacted>@host/x" in done.stderr
    shutil.rmtree(tmp_path / "package")
    assert told_in(tmp_path) == []


HELD = {
    "tracking.uri": ["http://me:{}@host:5000", "postgresql://me:{}@host/runs", "postgresql://host/runs?password={}"],
    "backbones.0.path": ["https://me:{}@host/model", "https://hf_{}@host/model", "{}"],
    "data.train.path": ["https://me:{}@host/train.jsonl"],
    "data.system": ["{}"],
    "tracking.tags": ["{{note: {}}}"],
}


@pytest.mark.faults
@pytest.mark.parametrize("key", HELD)
def test_a_secret_in_a_sweep_file_is_refused_and_not_told(
    key: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raysft.cli import main

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["MLFLOW_TRACKING_PASSWORD"])
    file = written(tiny(make_config), tmp_path)
    value = SECRETS["MLFLOW_TRACKING_PASSWORD"]
    monkeypatch.chdir(tmp_path)
    for text in HELD[key]:
        secret = value.replace("-", "") if "hf_" in text else value
        for command in ("check", "sweep", "submit", "probe"):
            setting = ["--set", f"{key}={text.format(secret)}"]
            monkeypatch.setattr(sys, "argv", ["raysft", command, str(file), *setting])
            with pytest.raises(SystemExit) as ended:
                main()
            said = "".join(capsys.readouterr())
            assert ended.value.code == 2
            assert "holds a password or token" in said
            assert "environment" in said
            assert not tells(said)
    assert told_in(tmp_path) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.faults
@pytest.mark.parametrize("command", [("ui",), ("report", "tiny"), ("advise", "gpt2", "a/b"), ("evaluate", "gpt2")])
def test_a_secret_on_the_command_line_is_refused_and_not_told(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from raysft.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["raysft", *command, "--tracking", f"postgresql://me:{CANARY}@host/runs"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "".join(capsys.readouterr())
    assert ended.value.code == 2
    assert "--tracking: holds a password or token" in said
    assert not tells(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_a_jobs_request_holds_no_secret(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSFT_ALLOW_OPEN", "1")
    request = job_request(written(tiny(make_config), tmp_path), ["name=other"], False)
    assert set(request["runtime_env"]["env_vars"]) == {
        "RAY_JOB_STOP_SIGNAL",
        "RAY_JOB_STOP_WAIT_TIME_S",
        "RAYSFT_ALLOW_OPEN",
    }
    assert not tells(json.dumps(request))
    assert {".env", ".netrc"} <= set(request["runtime_env"]["excludes"])
