"""The benchmark of sweeps: how a run's records are read, and short real runs; no time is judged."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raysft.config import Job, SweepConfig, TrialConfig
from raysft.inprocess import bench_here
from raysft.objectives import Power
from raysft.sweepfile import dump

FOLDER = Path(__file__).parent


@pytest.fixture
def sweep_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import sweep_runs

    return sweep_runs


@pytest.fixture
def sweep_memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import sweep_memory

    return sweep_memory


def test_work_is_steps_and_evaluation(sweep_runs: ModuleType, tmp_path: Path) -> None:
    """10 s that end at 1010: 1 s until the engine stands, 4 s of steps, 3 s of evaluation, 2 s of other things."""
    shares = {"start": 0.1, "forward": 0.1, "head": 0.1, "backward": 0.2, "evaluation": 0.3, "checkpoint": 0.2}
    line = {"step": 2, "time": 1010.0, "time/seconds": 10.0, **{f"time/{k}": v for k, v in shares.items()}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": 1005.0}) + "\n" + json.dumps(line) + "\n")
    busy = sweep_runs.busy_seconds(tmp_path)
    assert (busy.steps, busy.evaluation, busy.seconds) == pytest.approx((4, 3, 7))
    assert (busy.start, busy.end) == (1001, 1010)


def test_gaps_are_within_a_slot(sweep_runs: ModuleType) -> None:
    def trial(start: float, end: float) -> Any:
        return sweep_runs.Busy(start, end, steps=end - start, evaluation=0)

    one = sweep_runs.Study("b", 1, (trial(0, 4), trial(5, 8), trial(10, 12)))
    assert one.gaps() == [1, 2]
    assert one.up == 12
    two = sweep_runs.Study("b", 2, (trial(0, 4), trial(1, 9), trial(6, 8), trial(9.5, 10), trial(11, 12)))
    assert two.gaps() == [2, 1.5, 2]
    facts = sweep_runs.Run(started=-10, wall=25, studies=(two,)).facts()
    assert facts["until_first_trial"] == 10
    assert facts["busy"] == 4 + 8 + 2 + 0.5 + 1
    assert facts["efficiency"] == pytest.approx(15.5 / 50)
    assert facts["efficiency_up"] == pytest.approx(15.5 / 24)
    assert facts["gap"] == 2


def test_a_trials_own_clock_is_read(
    sweep_runs: ModuleType, make_config: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    study = make_config(training={"steps": 3}).for_backbone("tiny")
    before = time.time()
    trial = TrialConfig(objective=Power(), learning_rate=1e-3, seed=study.seed)
    bench_here(study).run(Job("0", trial, tmp_path))
    busy = sweep_runs.busy_seconds(tmp_path)
    assert busy.steps > 0
    assert busy.evaluation > 0
    assert busy.seconds <= busy.end - busy.start
    assert before < busy.start < busy.end < time.time()


def test_the_slope_leaves_the_first_trials_out(sweep_memory: ModuleType) -> None:
    assert sweep_memory.slope([(0, 100.0), (10, 500.0), (20, 520.0), (30, 540.0)]) == pytest.approx(2)
    assert sweep_memory.slope([(0, 100.0)]) is None


def bench(config: SweepConfig, folder: Path, *flags: str) -> tuple[str, dict[str, Any]]:
    (folder / "sweep.yaml").write_text(dump(config))
    command = [sys.executable, str(FOLDER / "bench_sweep.py"), "--file", str(folder / "sweep.yaml")]
    done = subprocess.run([*command, "--json", str(folder / "bench.json"), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "bench.json").read_text())


@pytest.mark.slow
def test_a_way_is_told(make_config: Callable[..., SweepConfig], tmp_path: Path) -> None:
    """The warm one alone, because cold groups take a minute to start."""
    flags = ["--ways", "warm", "--trials", "0", "--steps", "2", "--slots", "1", "--backbones", "tiny"]
    output, report = bench(make_config(), tmp_path, *flags, "--set", "evaluation.generation.samples=1")
    assert "cold / warm, wall" in output
    assert report["ways"]["cold_to_warm"] is None
    (found,) = report["ways"]["runs"]["warm"]
    assert (found["trials"], found["slots"], len(found["gaps"])) == (4, 1, 3)
    assert 0 < found["until_first_trial"] < found["wall"]
    assert found["busy"] == pytest.approx(found["steps"] + found["evaluation"])
    assert 0 < found["efficiency"] < found["efficiency_up"] <= 1


@pytest.mark.slow
def test_memory_of_one_worker(make_config: Callable[..., SweepConfig], tmp_path: Path) -> None:
    output, report = bench(make_config(), tmp_path, "--memory", "4", "--every", "1", "--stage", "1")
    found = report["memory"]["stage 1"]
    assert [done for done, _ in found["points"]] == [0, 1, 2, 3, 4]
    assert all(mib > 100 for _, mib in found["points"])
    assert isinstance(found["mib_a_trial"], float)
    assert "ZeRO 1" in output
