"""A process that judges answers, for `raysft.evaluation.pool`: a judgement may run for ever, or ask for all memory."""

import faulthandler
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 4 * 2**30  # a power tower asks for more than any machine has


def serve(judge: Callable[..., float], *example: Any) -> None:
    """Answers lines of JSON [argument, ..., seconds] with a score, until its input ends.

    example: arguments of a first call, which does the imports. The asking process kills this one when it is late. If
    that one has died, it ends itself, at twice the seconds.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _score(judge, example)
    print("ready", file=answers)
    for line in sys.stdin:
        *arguments, seconds = json.loads(line)
        faulthandler.dump_traceback_later(2 * seconds, exit=True)
        score = _score(judge, arguments)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(score), file=answers)


def _score(judge: Callable[..., float], arguments: Any) -> float:
    try:
        return float(judge(*arguments))
    except (Exception, RecursionError):  # what cannot be parsed or compared is not the answer
        return 0.0
