"""A sweep as a Ray job: what `ray job submit` does, with a stop that leaves time to save.

The job runs on the cluster's head node. Local paths of the sweep file are made absolute, so output, data and folders
of backbones must lie where all nodes find them under the same path; hub ids need nothing.
"""

import asyncio
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import raysft
from raysft.errors import InputError
from raysft.exposure import ALLOW, check_ray, has_ray_token
from raysft.sweepfile import absolute_paths, load

STOP_SECONDS = 120  # between SIGINT, on which a sweep saves its state, and SIGKILL
# Loggers that name each .gitignore and each package that is sent.
RAY_SAYS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
NOT_SENT = ["runs", ".venv", ".git", "*.safetensors", "__pycache__", ".env", ".netrc"]


def job_request(file: Path, sets: list[str], resume: bool, overlays: Sequence[Path] = ()) -> dict[str, Any]:
    """Entry point and runtime environment of the job, as `ray job submit` takes them.

    The working directory is the current one. The package itself travels along, so that the cluster runs this version.
    No secret goes into env_vars, which the dashboard shows. Raises InputError for a file or overlay outside the
    folder.
    """
    here = Path.cwd()
    laid_over = [word for overlay in overlays for word in ("--with", _sent(overlay, here))]
    variables = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    if ALLOW in os.environ:
        variables[ALLOW] = os.environ[ALLOW]
    settings = [*sets, *absolute_paths(load(file, sets, overlays))]
    command = ["python", "-m", "raysft", "sweep", _sent(file, here), *laid_over]
    words = [*command, *(word for s in settings for word in ("--set", s))]
    return {
        "entrypoint": shlex.join(words + ["--resume"] * resume),
        "runtime_env": {
            "working_dir": str(here),
            "excludes": NOT_SENT,
            "py_modules": [str(Path(raysft.__file__).parent)],
            "env_vars": variables,
        },
    }


def _sent(file: Path, here: Path) -> str:
    """Where a file of the working directory lies in it, there and on the cluster."""
    try:
        return str(file.resolve().relative_to(here))
    except ValueError:
        place = f"sweep file {file}"
        raise InputError(place, f"is outside the working directory {here}.", "Submit from a folder above it.") from None


def submit_sweep(
    file: Path,
    sets: list[str],
    overlays: list[Path],
    resume: bool,
    address: str,
    wait: bool,
    say: Callable[[str], None],
) -> int:
    """Submit, print how to follow and stop the job, and follow it if asked. Returns the exit code.

    Raises InputError for a cluster that does not take it, or that anybody who reaches it could use.
    """
    check_ray(address)
    if has_ray_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # the client ignores its token otherwise
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    for name in RAY_SAYS:
        logging.getLogger(name).setLevel(logging.ERROR)
    request = job_request(file, sets, resume, overlays)
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(**request)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        fix = "Check --address, and the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."
        raise InputError(f"Ray dashboard {address}", f"did not take the job: {reason}.", fix) from None
    say(f"Submitted {job_id}. Follow: ray job logs --follow --address {address} {job_id}")
    say(f"Stop, saving its state: ray job stop --address {address} {job_id}")
    if not wait:
        return 0
    asyncio.run(_follow(client, job_id))
    status = client.get_job_status(job_id)
    say(f"{job_id}: {status}")
    return 0 if status == JobStatus.SUCCEEDED else 1


async def _follow(client: Any, job_id: str) -> None:
    async for text in client.tail_job_logs(job_id):
        print(text, end="", flush=True)
