"""The Ray that a sweep runs on: a cluster that is there, or one that this process starts for itself."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants

from raysft.errors import InputError

LOOPBACK = "127.0.0.1"
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """A connection to the cluster of `address` or RAY_ADDRESS, or a local one of this machine, on loopback.

    A session that is already there is used and left alone. Raises InputError for a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints even when it is told not to
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # which it prints; what matters is raised here
    address = address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **QUIET)
        else:
            _start_local()
    except ConnectionError as error:
        reason = f"does not answer: {error}"
        raise InputError(f"Ray cluster {address}", reason, "Check --address or RAY_ADDRESS.") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # a local Ray sets its own, which ends the sweep without a word
    try:
        yield
    finally:
        ray.shutdown()


def _start_local() -> None:
    with on_loopback():
        ray.init(
            address="local",
            include_dashboard=False,
            dashboard_port=_free_port(),  # without a dashboard, its address would still be that of another Ray's
            object_store_memory=200_000_000,
            **QUIET,
        )


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started within listens to this machine alone, as by itself on a Mac; else to every network.

    Its processes ask it, and no other Ray of this machine. Else they ask the newest: Ray Train would then not find the
    groups of this sweep, think them dead and remove them.
    """
    clusters, before, port = ray_constants.ENABLE_RAY_CLUSTER, os.environ.copy(), _free_port()
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ |= {"RAY_GCS_SERVER_PORT": f"{port}", "RAY_ADDRESS": f"{LOOPBACK}:{port}"}
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name in ("RAY_GCS_SERVER_PORT", "RAY_ADDRESS"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])
