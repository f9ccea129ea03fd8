"""Where messages go. Logging is the whole process's, so each look is a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from raysft.quiet import libraries_quiet

PROGRAM = """
import logging, sys, warnings
from pathlib import Path
from raysft.quiet import NOISY, libraries_to
for path in sys.argv[1:]:
    assert libraries_to(Path(path)) == Path(path).resolve()
warnings.warn("a hint nobody needs")
for name in (*NOISY, "some.other.package"):
    logging.getLogger(name).warning("from %s", name)
logging.getLogger("ray.tune").info("too quiet")
logging.getLogger("raysft.sweep").warning("for the user")
logging.getLogger("raysft.sweep").info("not for the user")
"""


def run(*paths: Path) -> str:
    """What the program wrote to the terminal."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def test_libraries_write_to_the_file_and_the_project_to_both(tmp_path: Path) -> None:
    log = tmp_path / "new" / "folder" / "raysft.log"
    assert run(log) == "raysft: for the user\n"
    written = log.read_text()
    for name in ("ray.tune", "mlflow", "some.other.package"):
        assert written.count(f"WARNING {name}: from {name}\n") == 1
    assert written.count("WARNING raysft.sweep: for the user\n") == 1
    assert "quiet" not in written
    assert "hint" not in written


def test_the_last_file_gets_everything_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    assert run(first, second) == "raysft: for the user\n"
    assert first.read_text() == ""
    assert second.read_text().count("from ray.tune") == 1


def test_no_progress_bars_and_no_hints() -> None:
    libraries_quiet()
    import datasets
    import torch
    import transformers

    assert datasets.are_progress_bars_disabled()
    assert not transformers.utils.logging.is_progress_bar_enabled()
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    assert torch.cuda.is_available() or os.environ["DS_ACCELERATOR"] == "cpu"
