"""`raysft ui`: MLflow's own pages on the runs of a sweep, served on this machine for as long as the command runs."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from raysft.errors import InputError, TrialFailed
from raysft.redaction import redacted

if TYPE_CHECKING:
    from raysft.config import SweepConfig

HOST = "127.0.0.1"
START_SECONDS = 180.0
END_SECONDS = 10.0  # before what is left of the server is killed

# One sweep is looked at by one person; jobs are for what raysft does not use, and would leave processes of their own.
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def command(config: "SweepConfig") -> str:
    """What opens the runs of a sweep: this command, or the address of the server that has them."""
    uri = config.tracking.uri
    if uri is None:
        return f"raysft ui {config.folder}"
    return redacted(uri) if uri.startswith("http") else f"raysft ui {config.name} --tracking {redacted(uri)}"


def show(target: str | None, tracking: str | None, port: int, say: Callable[[str], None]) -> None:
    """Serve the runs of a target (as raysft.targets has it; None: all of ./runs) until interrupted.

    Raises InputError where there are none or the port is taken, TrialFailed for a server that does not start.
    """
    from raysft.targets import RUNS, Place, place_of
    from raysft.tracking import default_uri, is_database, open_to_read, reading

    if target is None or (tracking is None and Path(target, "mlflow.db").is_file()):
        folder = Path(target) if target else RUNS
        fix = "Run a sweep first, or name what holds runs: a sweep file or a folder like runs/demo."
        place = Place(tracking or default_uri(folder), "", folder, fix=fix)
    else:
        place = place_of(target, tracking)
    client = open_to_read(place.uri, place.fix)
    with reading(place.uri):
        experiment = client.get_experiment_by_name(place.name) if place.name else None
    if place.name and experiment is None:
        raise InputError(f"MLflow experiment '{place.name}'", "does not exist.", place.fix)
    name, experiment_id = place.name, experiment.experiment_id if experiment else None
    if not is_database(place.uri):
        say(f"MLflow: {_page(redacted(place.uri).rstrip('/'), experiment_id)}")
        return
    _check_free(port)
    with serving(place.uri, port) as process:
        say(f"MLflow: {_page(f'http://{HOST}:{port}', experiment_id)}")
        say(f"Serving {name or 'all sweeps'} of {redacted(place.uri)}. End it with Ctrl-C.")
        try:
            process.wait()
        except KeyboardInterrupt:
            return
    raise TrialFailed(f"MLflow's server ended by itself, with exit code {process.returncode}.")


def _page(server: str, experiment_id: str | None) -> str:
    from raysft.tracking import address

    return address(server, experiment_id, charts=True) if experiment_id else server


@contextmanager
def serving(uri: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A server of MLflow that answers, on a database; with the block it ends, its own processes included."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    environment = os.environ | SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri}  # not an argument: it may hold a password
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            _wait(process, port, log)
            yield process
        finally:
            _end(process)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            # always http, on this machine
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):  # nosec B310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    raise TrialFailed(f"MLflow's server did not start: {redacted(lines[-1])}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The server and all that it started: they are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        give_up = time.monotonic() + END_SECONDS
        while time.monotonic() < give_up and _group_lives(process):
            time.sleep(0.05)
    process.wait()


def _group_lives(process: "subprocess.Popen[bytes]") -> bool:
    process.poll()  # reaps the leader, which would count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _check_free(port: int) -> None:
    """Raises InputError for a port that cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"--port {port}", f"cannot be had: {error.strerror}.", _another(port)) from None


def _another(port: int) -> str:
    """The next port that is free."""
    for other in range(port + 1, min(port + 100, 65536)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, other))
            except OSError:
                continue
            return f"Take another: --port {other}"
    return "Take another."
