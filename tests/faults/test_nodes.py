"""Nodes of a cluster that are lost while a group works on them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.nodes import config_of
from tests.training.workers import run_group
from tests.training.workers import train as train_alone

HERE = Path(__file__).parent


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Of Ray's files, where no other Ray of this machine looks for the newest address; sockets want a short name."""
    folder = tempfile.mkdtemp(prefix="ray-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.faults
def test_trials_of_a_lost_node_go_on_elsewhere(
    tiny_backbone: Path, additions: Path, tmp_path: Path, ray_folder: Path
) -> None:
    """LOSSES=20 takes minutes. The driver, the board and Tune's trials stand on the head, which lives."""
    losses, train = int(os.environ.get("LOSSES", "2")), additions / "train.jsonl"
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "nodes.py"), str(tmp_path), str(tiny_backbone), str(train), str(losses)],
        env=os.environ | {"PYTHONPATH": paths, "RAY_TMPDIR": str(ray_folder)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=240 * losses,
    )
    assert done.returncode == 0
    told = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert told == {"lost": losses, "trials": {f"{n:04d}": "FINISHED" for n in range(5)}}
    config = config_of(tmp_path, str(tiny_backbone), str(train), losses)
    client = MlflowClient(f"sqlite:///{config.output}/mlflow.db")
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 6
    study = config.for_backbone("tiny").model_dump_json()
    for run in runs:
        if (trial_id := run.data.tags.get("raysft.trial_id")) is None:
            continue
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in points] == list(range(1, 150 * losses + 1))
        recorded = config.folder / "tiny" / "trials" / trial_id / "trial.json"
        alone = tmp_path / "alone" / trial_id
        run_group(1, tmp_path / f"meet-{trial_id}", train_alone, study, recorded.read_text(), alone)
        undisturbed = [json.loads(line)["train/loss"] for line in (alone / "metrics.jsonl").read_text().splitlines()]
        assert [point.value for point in points] == undisturbed
