"""Where runs lie: sqlite under the output folder unless the sweep file names another place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.exposure import check_mlflow
from raysft.redaction import redacted
from raysft.tracking.spool import reason_of

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SET_UP_SECONDS = 120.0  # that a first use waits for another process's

OPENS_AS = {"mlflow.experimentKind": "custom_model_development"}  # the UI's pages for training runs

FIX = (
    "Correct tracking.uri or start its server (mlflow server --host 127.0.0.1), or leave tracking.uri out: "
    "runs then go to sqlite under the output folder."
)


def tracking_uri(config: SweepConfig) -> str:
    """Where the runs go: `tracking.uri`, or sqlite under the output folder."""
    return config.tracking.uri or default_uri(config.output)


def default_uri(output: Path) -> str:
    """The sqlite that an output folder has."""
    return f"sqlite:///{output.resolve() / 'mlflow.db'}"


def place(uri: str) -> str:
    """How an error names it."""
    return f"tracking.uri '{redacted(uri)}'"


def is_database(uri: str) -> bool:
    return uri.split(":")[0].split("+")[0] in DATABASES


def writer(uri: str, output: Path, name: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment `name`. Makes database and experiment where they are missing; several
    processes may do so at once.

    Raises InputError for a place that does not answer, cannot be used, or lets anybody write who reaches it.
    """
    check_mlflow(uri)
    output = output.resolve()
    artifacts = (output / "mlartifacts").as_uri() if is_database(uri) else None  # a server has its own place
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".mlflow.lock", timeout=SET_UP_SECONDS):
            if is_database(uri):
                _make_folder(uri)
                _tables(uri)
            client = MlflowClient(uri)
            experiment = _experiment(client, name, artifacts)
    except Exception as error:
        raise InputError(place(uri), f"MLflow cannot be used: {reason_of(error)}.", FIX) from None
    return client, str(active(experiment).experiment_id)


def holds_runs(uri: str) -> bool:
    """False for a sqlite file that nothing was ever written to; it makes nothing. Of other places it is not known."""
    return not is_database(uri) or (file := _file(uri)) is None or file.is_file()


def open_to_read(uri: str, fix: str = "") -> MlflowClient:
    """A client of a place that has runs already; it makes nothing. Raises InputError where there is nothing to read.

    fix: what to do in that case.
    """
    with reading(uri):
        if is_database(uri):
            file = _file(uri)
            if (file is not None and not file.is_file()) or "experiments" not in _tables(uri):
                raise InputError(_store(uri), "holds no runs.", fix)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # a client asks nothing before its first use
        return client


def all_runs(
    client: MlflowClient, experiment_ids: Sequence[str], condition: str = "", newest: int | None = None
) -> list[Run]:
    """Oldest first; a thousand come in one answer. newest: only about so many of them, newest first."""
    order = ["attributes.start_time ASC" if newest is None else "attributes.start_time DESC"]
    search = partial(client.search_runs, list(experiment_ids), condition, max_results=1000, order_by=order)
    page = search()
    runs = list(page)
    while page.token and (newest is None or len(runs) < newest):
        page = search(page_token=page.token)
        runs += page
    return runs


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raises InputError for whatever keeps runs from being read."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # of a database's driver, too
        raise InputError(_store(uri), f"cannot be read: {reason_of(error)}.", "Check the tracking URI.") from None


def active(experiment: Experiment) -> Experiment:
    """The experiment. Raises InputError for one that was deleted."""
    if experiment.lifecycle_stage != "active":
        fix = f"Restore it (mlflow experiments restore --experiment-id {experiment.experiment_id}), or --set name=..."
        raise InputError(f"MLflow experiment '{experiment.name}'", "was deleted.", fix)
    return experiment


def _store(uri: str) -> str:
    return f"MLflow at {redacted(uri)}"


def _file(uri: str) -> Path | None:
    """The file of a sqlite database."""
    url = sqlalchemy.make_url(uri)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _make_folder(uri: str) -> None:
    if (file := _file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)


def _tables(uri: str) -> list[str]:
    """Raises at once for a database that is not there; MLflow would try for minutes."""
    engine = sqlalchemy.create_engine(uri)
    try:
        return sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts, OPENS_AS))
        except MlflowException:  # another process, on another machine, was first
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return found
