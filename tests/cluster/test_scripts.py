"""The scripts and images of cluster/, by their linters, and the parts of the Slurm script that need no Slurm."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.filling import FOLDER, filled

TOOLS = Path(sys.executable).parent


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "slurm.sh"
    file.write_text(filled("slurm.sh"))
    return file


def test_scripts_are_clean(script: Path) -> None:
    for file in [FOLDER / "fill.sh", script]:
        assert subprocess.run(["bash", "-n", file]).returncode == 0
        done = subprocess.run([TOOLS / "shellcheck", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_shellcheck_would_say_so(script: Path) -> None:
    script.write_text(script.read_text() + "\nrm -r $unset/*\n")
    assert subprocess.run([TOOLS / "shellcheck", script], capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_images_are_clean(name: str) -> None:
    done = subprocess.run([TOOLS / "hadolint", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_images_run_as_a_user_and_take_no_secret(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users[-1] == "USER 1000:1000"  # a number: Kubernetes cannot tell from a name that it is not root
    assert not [line for line in lines if line.startswith("ADD")]
    assert not [line for line in lines if line.startswith(("ENV", "ARG")) and ("TOKEN" in line or "PASSWORD" in line)]


def test_hadolint_would_say_so(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text((FOLDER / "Dockerfile").read_text().replace("USER 1000:1000", "USER root"))
    assert subprocess.run([TOOLS / "hadolint", file], capture_output=True).returncode == 1


def handling(child: str) -> str:
    """The script's own traps, its waiting and its end, around another child than a sweep; without Slurm's scontrol."""
    text = filled("slurm.sh")
    head = text[text.index("sweep=0") : text.index("# shellcheck source=/dev/null")]
    tail = text[text.index("sweep=$!") :]
    slurm = 'SLURM_JOB_ID=7\nscontrol() { echo "$@"; }'
    return f"set -euo pipefail\n{slurm}\n{head}\n{child} &\n{tail}"


SAVES = """python3 -c '
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)'"""


WARNED, STOPPED = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("numbers", "end"),
    [([WARNED], "requeue 7\n"), ([STOPPED], ""), ([STOPPED, WARNED], ""), ([WARNED, STOPPED], "")],
)
def test_the_sweep_saves_once_before_the_job_ends(numbers: list[signal.Signals], end: str) -> None:
    """It is queued again if Slurm's warning was all that came."""
    process = subprocess.Popen(["bash", "-c", handling(SAVES)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # until the script waits
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)  # the sweep needs longer
    rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (1, f"saved\n{end}")


def test_the_code_of_a_sweep_that_ends_by_itself() -> None:
    for code in (0, 2):
        done = subprocess.run(["bash", "-c", handling(f"(exit {code})")], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, "")


def test_a_warning_before_the_sweep_began_ends_the_job() -> None:
    text = handling("true").replace("true &\n", "kill -INT $$\n:\necho went on &\n")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
