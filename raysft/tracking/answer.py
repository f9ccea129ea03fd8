"""A study's answer, kept with its parent run."""

from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raysft.errors import TrialFailed
from raysft.redaction import redacted
from raysft.tracking.describing import NOTE
from raysft.tracking.spool import reason_of

REPORT = "report"  # folder of the run's artifacts


def keep_answer(uri: str, run_id: str, sentence: str, files: Sequence[Path]) -> None:
    """The sentence becomes the run's description in the UI, the files its artifacts.

    Raises TrialFailed where MLflow does not take them.
    """
    client = MlflowClient(uri)
    try:
        client.set_tag(run_id, NOTE, redacted(sentence))
        for file in files:
            client.log_artifact(run_id, str(file), REPORT)
    except (MlflowException, OSError) as error:
        raise TrialFailed(f"MLflow at {redacted(uri)} does not take the report: {reason_of(error)}.") from None
