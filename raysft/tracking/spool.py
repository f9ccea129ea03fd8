"""Writes to MLflow that wait while it does not answer, so that no failure of tracking stops the training."""

import logging
import time
from collections import deque
from collections.abc import Callable

from mlflow.exceptions import MlflowException

from raysft.redaction import redacted

log = logging.getLogger(__name__)

Write = Callable[[], None]

LONGEST_PAUSE_SECONDS = 8.0  # between two attempts


class Spool:
    """Writes in their order; while MLflow does not answer they wait here. Each must bear being repeated."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._writes: deque[Write] = deque()
        self._files: deque[Write] = deque()  # after the writes: an artifact store that is lost holds up nothing else
        self._failures = 0
        self._retry_at = 0.0
        self._refused: set[str] = set()

    def add(self, write: Write) -> None:
        self._writes.append(write)
        self.drain()

    def add_file(self, write: Write) -> None:
        self._files.append(write)
        self.drain()

    def drain(self, patience: float = 0.0) -> None:
        """Make the writes that wait, as far as they go, without sleeping; or go on trying for `patience` seconds."""
        give_up = time.monotonic() + patience
        while queue := self._writes or self._files:
            if (pause := self._retry_at - time.monotonic()) > 0:
                if (left := give_up - time.monotonic()) <= 0:
                    break
                time.sleep(min(pause, left))
            try:
                queue[0]()
            except Exception as error:
                if _may_pass(error):
                    self._pause(error)
                    continue
                self._say_refused(error)
            else:
                self._say_recovered()
            queue.popleft()
        if patience and (waiting := len(self._writes) + len(self._files)):
            message = "MLflow at %s lacks %d writes, which are tried again as long as this sweep runs."
            log.warning(f"{message} The trials' folders hold all metrics.", self._where, waiting)

    def _pause(self, error: Exception) -> None:
        if not self._failures:
            message = "MLflow at %s fails (%s). Training goes on; what MLflow misses is written when it works again."
            log.warning(message, self._where, reason_of(error))
        self._retry_at = time.monotonic() + min(2.0**self._failures, LONGEST_PAUSE_SECONDS)
        self._failures += 1

    def _say_recovered(self) -> None:
        if self._failures:
            log.warning("MLflow at %s works again.", self._where)
        self._failures = 0

    def _say_refused(self, error: Exception) -> None:
        reason = reason_of(error)
        if reason not in self._refused:
            log.warning("MLflow at %s refuses a write, which is left out: %s.", self._where, reason)
        self._refused.add(reason)


# Another attempt would be refused as well.
_REFUSALS = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: the server or its network is down, the database locked, the disk full."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def reason_of(error: Exception) -> str:
    if isinstance(error, MlflowException) and isinstance(error.__context__, OSError):
        return "no server answers there"
    lines = str(error).splitlines() or [type(error).__name__]
    return redacted(lines[0])[:300].rstrip(".")
