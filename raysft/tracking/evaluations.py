"""What models answered, as artifact and table of a run; and the runs of single models that were scored."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from raysft.errors import TrialFailed
from raysft.records import as_table, read_records
from raysft.tracking.runs import as_text, milliseconds
from raysft.tracking.spool import reason_of
from raysft.tracking.store import default_uri, place, writer

TABLE = "completions.json"  # what MLflow's UI shows of the records


def log_completions(client: MlflowClient, run_id: str, path: Path) -> None:
    """A file of records as an artifact, and some of them as a table of the UI. Repeated, it replaces both.

    MLflow's own log_table would append to what an earlier attempt has written.
    """
    client.log_artifact(run_id, str(path))
    client.log_text(run_id, as_table(read_records(path)), TABLE)
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))


class Evaluations:
    """The experiment `evaluation`, where each time that a single model was scored is a run."""

    def __init__(self, output: Path, uri: str | None) -> None:
        """uri: default: sqlite under the output folder. Raises InputError as Tracking does."""
        self.uri = uri or default_uri(output)
        self._client, self._experiment_id = writer(self.uri, output, "evaluation")

    def log(
        self, model: str, params: Mapping[str, Any], metrics: Mapping[str, float], records: Path | None = None
    ) -> None:
        """Raises TrialFailed where MLflow no longer takes it."""
        try:
            run_id = self._client.create_run(self._experiment_id, run_name=model).info.run_id
            now = milliseconds(time.time())
            self._client.log_batch(
                run_id,
                [Metric(key, float(value), now, 0) for key, value in metrics.items()],
                [Param(key, as_text(value)) for key, value in params.items()],
            )
            if records is not None:
                log_completions(self._client, run_id, records)
            self._client.set_terminated(run_id)
        except Exception as error:
            raise TrialFailed(f"{place(self.uri)}: MLflow does not take the run: {reason_of(error)}.") from None
