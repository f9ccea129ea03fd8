"""What a command that reads results is given: a sweep file, a sweep's output folder, or an MLflow experiment."""

import os
from dataclasses import dataclass
from pathlib import Path

from raysft.errors import InputError
from raysft.sweepfile import load
from raysft.tracking import STUDY_ID, default_uri, tracking_uri

RUNS = Path("runs")  # the output folder where none is named


@dataclass(frozen=True)
class Place:
    """An experiment. folder: of the sweep's output; ids: of the studies that are meant, all where it is empty; fix:
    what to do if nothing is there.
    """

    uri: str
    name: str
    folder: Path = RUNS
    ids: frozenset[str] = frozenset()
    fix: str = ""


def place_of(target: str, uri: str | None) -> Place:
    """uri: of the store, where it is named. Raises InputError for a target that is none."""
    if target.endswith((".yaml", ".yml")):
        config = load(Path(target))
        fix = f"Run it first: raysft sweep {target}"
        return Place(uri or tracking_uri(config), config.name, config.folder, _study_ids(config.folder), fix)
    folder = Path(target)
    if not folder.is_dir():
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(RUNS)
        return Place(uri, target, RUNS / target.replace("/", "--"), fix="Name the store with --tracking.")
    folder = folder.resolve()
    if not (ids := _study_ids(folder)):
        raise InputError(target, "is no sweep's folder.", _sweeps_near(folder))
    beside = folder.parent / "mlflow.db"
    uri = uri or (default_uri(folder.parent) if beside.exists() else os.environ.get("MLFLOW_TRACKING_URI"))
    if uri is None:
        raise InputError(target, f"has no {beside.name} beside it.", "Name the store with --tracking.")
    return Place(uri, folder.name, folder, ids)


def _study_ids(folder: Path) -> frozenset[str]:
    """Of the studies in a sweep's folder."""
    return frozenset(path.read_text().strip() for path in folder.glob(f"*/{STUDY_ID}"))


def _sweeps_near(folder: Path) -> str:
    """Which folder may have been meant by one that holds no studies."""
    below = sorted({str(path.parents[1]) for path in folder.glob(f"*/*/{STUDY_ID}")})
    if below:
        return f"Name one of {', '.join(below)}."
    above = next((parent for parent in folder.parents[:3] if _study_ids(parent)), None)
    return f"Did you mean '{above}'?" if above else "Name one such as runs/NAME, where a sweep has begun."


def newest() -> Path:
    """The folder under ./runs of the sweep that began last. Raises InputError where there is none."""
    begun = sorted(RUNS.glob(f"*/*/{STUDY_ID}"), key=lambda path: path.stat().st_mtime)
    if not begun:
        raise InputError(f"{RUNS}/", "holds no sweep.", "Name a sweep file, a sweep's folder or an MLflow experiment.")
    return begun[-1].parents[1]
