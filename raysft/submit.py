"""A sweep as a Ray job: what `ray job submit` does, with a stop that leaves time to save."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raysft
from raysft.errors import InputError

STOP_SECONDS = 120  # between SIGINT, on which a sweep saves its state, and SIGKILL


def job_request(file: Path, sets: list[str], resume: bool) -> dict[str, Any]:
    """Entry point and runtime environment of the job.

    The working directory is the current one; the output folder is named absolutely, because a job runs in a copy.
    The package itself travels along, so that the cluster runs this version. No secret goes into env_vars, which the
    dashboard shows.
    """
    here = Path.cwd()
    try:
        inside = file.resolve().relative_to(here)
    except ValueError:
        raise InputError(
            str(file), f"is outside the working directory {here}.", "Submit from a folder above it."
        ) from None
    from raysft.sweepfile import load

    output = load(file, sets).output.resolve()
    words = ["python", "-m", "raysft", "sweep", str(inside), *(w for s in sets for w in ("--set", s))]
    words += ["--set", f"output={output}"] + (["--resume"] if resume else [])
    return {
        "entrypoint": " ".join(_quoted(word) for word in words),
        "runtime_env": {
            "working_dir": str(here),
            "excludes": ["runs", ".venv", ".git", "*.safetensors"],
            "py_modules": [str(Path(raysft.__file__).parent)],
            "env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        },
    }


def submit_sweep(
    file: Path, sets: list[str], resume: bool, address: str, wait: bool, say: Callable[[str], None]
) -> int:
    """Submit, print how to follow and stop the job, and follow it if asked. Returns the exit code."""
    os.environ.setdefault("RAY_AUTH_MODE", "token") if (Path.home() / ".ray" / "auth_token").exists() else None
    from ray.job_submission import JobStatus, JobSubmissionClient

    request = job_request(file, sets, resume)
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(**request)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"Ray dashboard {address}", f"did not take the job: {reason}", "Check --address and the token."
        ) from None
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


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
