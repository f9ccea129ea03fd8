"""What `raysft sweep`, `train` and `demo` do with a sweep: run it to its end, and tell the answer."""

import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from raysft.config import SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.quiet import libraries_to

if TYPE_CHECKING:
    from raysft.sweep.driver import StudyResult

FAILED = 1


def run(
    config: SweepConfig,
    resume: bool,
    address: str | None = None,
    given: Callable[[SweepConfig], list[TrialConfig]] | None = None,
) -> int:
    """The exit code that the trials deserve. given: as `raysft.sweep.driver.sweep` has it."""
    log = libraries_to(config.output / config.name / "raysft.log")
    print(f"The libraries' own messages go to {log}", flush=True)
    from raysft.progress import Progress
    from raysft.sweep.driver import sweep

    return _tell(config, sweep(config, Progress(Console()), resume, address, given))


def _tell(config: SweepConfig, results: "list[StudyResult]") -> int:
    """The closing table, the report, and how to go on."""
    from raysft.table import result_table
    from raysft.ui import command

    interrupted = any(result.interrupted for result in results)
    console = Console()
    console.print(result_table(results, config))
    if config.search.trials != 0 and not interrupted:
        _report(config)
    console.print(f"Compare the runs in MLflow: {command(config)}", highlight=False, markup=False, soft_wrap=True)
    if interrupted:
        console.print(f"Interrupted. {_how_to_go_on()}", highlight=False, markup=False, soft_wrap=True)
    failed = any(trial.status == "FAILED" for result in results for trial in result.trials)
    return FAILED if interrupted or failed else 0


def _how_to_go_on() -> str:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # Ray's job manager started this; its folder is gone with the job
        return "Continue by submitting the same again, with --resume."
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return f"Continue with: {shlex.join(['raysft', *words, '--resume'])}"


def _report(config: SweepConfig) -> None:
    """The answer. That it cannot be written is said, but the sweep is done."""
    from raysft.redaction import redacted
    from raysft.report import report
    from raysft.tracking import tracking_uri

    def say(text: str) -> None:
        print(redacted(text), flush=True)

    try:
        page = report([config.folder], config.folder / "report", tracking_uri(config), True, say)
        config.store.push(page.parent)
    except (InputError, TrialFailed) as error:
        say(f"No report: {error}")
