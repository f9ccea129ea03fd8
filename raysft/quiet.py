"""Keeps the libraries' own messages out of the user's way: they go to a log file."""

import logging
import os
import warnings
from pathlib import Path

from raysft.redaction import redacted

NOISY = (
    "ray",
    "ray.tune",
    "ray.train",
    "ray.data",
    "DeepSpeed",
    "transformers",
    "datasets",
    "mlflow",
    "alembic",
    "optuna",
)


class Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def libraries_to(path: Path) -> Path:
    """Send warnings and log records of all libraries to `path`, ours at warning level to the terminal as well.

    Call before ray, mlflow and transformers are imported. Returns the absolute path.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Ray prints this one whatever log_to_driver says; waiting trial functions are what it counts.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    warnings.filterwarnings("ignore")
    logging.raiseExceptions = False  # a full disk, which the log's file is on, is no reason to print tracebacks
    file = logging.FileHandler(path)
    file.setFormatter(Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[file], force=True)
    for name in NOISY:
        logger = logging.getLogger(name)
        logger.handlers = [file]
        logger.propagate = False
    own = logging.StreamHandler()
    own.setFormatter(Redacting("raysft: %(message)s"))
    logging.getLogger("raysft").handlers = [own]  # one, also where this is called again for another file
    return path


def libraries_quiet() -> None:
    """No progress bars and hints in this process, and no guess by DeepSpeed where there is no GPU. Imports torch."""
    import datasets
    import torch
    import transformers

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # transformers imports DeepSpeed whenever it saves a model
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
