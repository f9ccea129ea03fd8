"""MLflow, to which only this package writes, and only in the driver's process: one writer for each sweep.

Experiment = sweep; parent run = one backbone's study; child run = one trial. Every write may be repeated without
doubling anything, so a write that MLflow does not take is kept and made later: after set-up, no failure of tracking
stops the training.
"""

import logging
import os

# Retries are this package's: MLflow's own would hold the sweep up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from raysft.tracking.describing import objective_of
from raysft.tracking.evaluations import TABLE, Evaluations
from raysft.tracking.store import (
    active,
    all_runs,
    default_uri,
    holds_runs,
    is_database,
    open_to_read,
    reading,
    tracking_uri,
)
from raysft.tracking.study import STUDY_ID, Study, Tracking
from raysft.tracking.view import address

for _name in ("mlflow", "alembic"):  # what they would say reaches this package as exceptions, and is worded here
    logging.getLogger(_name).setLevel(logging.CRITICAL)

__all__ = [
    "STUDY_ID",
    "TABLE",
    "Evaluations",
    "Study",
    "Tracking",
    "active",
    "address",
    "all_runs",
    "default_uri",
    "holds_runs",
    "is_database",
    "objective_of",
    "open_to_read",
    "reading",
    "tracking_uri",
]
