"""The mirror on real files, a real store and a real board: what it passes on, and what it does not take for granted."""

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from raysft.config import TrialConfig
from raysft.objectives import Power
from raysft.progress import Progress
from raysft.publish import append, publish
from raysft.sweep import mirror as module
from raysft.sweep.board import start_board
from raysft.sweep.ledger import METRICS, Ledger
from raysft.sweep.mirror import Mirror
from raysft.tracking import Study, Tracking
from tests.conftest import MadeSweeps, fill

NLL = TrialConfig(objective=Power(), learning_rate=1e-3, seed=0)


@pytest.fixture
def study(made: MadeSweeps) -> Study:
    config = made.sweep().for_backbone("tiny")
    return Tracking(config).start_study(config)


@pytest.fixture
def mirror(ray_cluster: None, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_READS", 0.0)
    board = start_board(0)
    yield Mirror(study, board, Ledger(tmp_path / "trials"), Progress(Console(file=StringIO())))
    ray.kill(board)


def tunes(trial_id: str, **result: Any) -> Any:
    """What the mirror sees of a trial of Tune's."""
    config = {"trial_id": trial_id, "trial": NLL.model_dump(mode="json"), "until": None}
    return SimpleNamespace(config=config, status="RUNNING", last_result=result)


def lines(*steps: int, late: float = 0.0) -> str:
    points = [{"step": step, "time": 1.7e9 + step + late, "train/loss": 1 / step} for step in steps]
    return "".join(json.dumps(point) + "\n" for point in points)


def passed_on(study: Study, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that tracking is handed from now on."""
    seen: list[int] = []
    log = study.log_points

    def log_points(trial_id: str, points: list[dict[str, Any]]) -> None:
        seen.extend(point["step"] for point in points)
        log(trial_id, points)

    monkeypatch.setattr(study, "log_points", log_points)
    return seen


def test_a_file_that_was_cut_back_and_has_outgrown_itself_is_read_anew(
    mirror: Mirror, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group broke, its trial resumed, all between two looks; the new lines are of other lengths."""
    seen = passed_on(study, monkeypatch)
    trial = tunes(mirror.ledger.begin(NLL))
    path = mirror.ledger.folder / trial.config["trial_id"] / METRICS
    mirror.on_trial_start(0, [trial], trial)
    append(path, lines(1, 2, 3, 4))
    mirror.on_step_end(0, [trial])
    publish(path, lines(1, 2))
    append(path, lines(3, 4, 5, 6, late=0.123456))
    append(path, '{"step": 7, "ti')
    mirror.on_step_end(1, [trial])
    assert seen == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]
    append(path, 'me": 1.7e9, "train/loss": 1}\n')
    mirror.on_step_end(2, [trial])
    assert seen[10:] == [7]


def test_an_end_that_the_disk_does_not_hold_ends_the_sweep_not_the_trial(mirror: Mirror, small_disk: Path) -> None:
    mirror.ledger = Ledger(small_disk / "trials")
    trial = tunes(mirror.ledger.begin(NLL), kind="finished", step=2, **{"eval/nll": 0.5})
    mirror.on_trial_start(0, [trial], trial)
    fill(small_disk, leaving=0)
    mirror.on_trial_complete(0, [trial], trial)
    with pytest.raises(OSError, match="No space left on device"):
        mirror.on_step_end(1, [trial])
    assert [row.status for row in mirror.ledger.rows()] == ["INTERRUPTED"]
