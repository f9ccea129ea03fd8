"""A study's file of Optuna, read by Optuna itself and by a real optuna-dashboard."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import requests
from optuna.trial import TrialState

from raysft.capability import LEVELS, Capability
from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.sweep.driver import baselines, study_folder
from raysft.sweep.ledger import Ledger, TrialRow
from raysft.sweep.optunafile import FILE, write_optuna

METRIC = "eval/nll"
CAPABILITY = Capability(0.4, -1.0, 0.3, 900, 60, [float(level) for level in LEVELS], [45] * 20)


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "sweep",
            "output": str(tmp_path / "runs with space"),
            "backbones": [{"name": "tiny", "path": "models/tiny"}],
            "data": {"train": {"kind": "file", "path": "train.jsonl"}},
            "space": {"exponent": {"low": 0.5, "high": 3}, "threshold": {"low": 0.1, "high": 0.5}},
            "search": {"metric": METRIC},
        }
    )


@pytest.fixture
def ledger(config: SweepConfig) -> Ledger:
    """Four baselines that finished, and searched trials that finished, were stopped, failed and are not over."""
    ledger = Ledger(study_folder(config) / "trials")
    for trial in baselines(config):
        end(ledger, ledger.begin(trial), trial, "FINISHED", {10: 0.5, 20: 0.4})
    for number, status in enumerate(("FINISHED", "KILLED", "FAILED", None)):
        objective = Power(exponent=1 + number / 2, threshold=0.2 if number % 2 else None)
        trial = TrialConfig(objective=objective, learning_rate=5e-5, seed=0)
        name = ledger.begin(trial)
        if status:
            end(ledger, name, trial, status, {10: 0.3 + number} if status == "KILLED" else {20: 0.3})
    return ledger


def end(ledger: Ledger, name: str, trial: TrialConfig, status: Any, values: dict[int, float]) -> None:
    lines = [f'{{"step": {step}, "{METRIC}": {value}}}\n' for step, value in values.items()]
    (ledger.folder / name / "metrics.jsonl").write_text("".join(lines))
    last = max(values)
    ledger.end(TrialRow(name, trial, status, {METRIC: values[last]}, last, "" if status == "FINISHED" else "reason"))


def test_optuna_reads_what_the_ledger_holds(config: SweepConfig, ledger: Ledger) -> None:
    path = write_optuna(config, CAPABILITY, ledger, {"0000": "a" * 32})
    assert path == study_folder(config) / FILE
    study = optuna.load_study(study_name="sweep/tiny", storage=f"sqlite:///{path}")
    assert study.metric_names == [METRIC]
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.user_attrs == {"backbone": "tiny", "capability": 0.4}
    states = [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in study.trials] == states
    nll, linear, sharp, thresholded, *searched = study.trials
    assert linear.params == {"exponent": 1.0, "thresholded": False}
    assert nll.params == sharp.params == thresholded.params == {}, "they lie outside the space"
    assert (nll.value, nll.intermediate_values) == (0.4, {10: 0.5, 20: 0.4})
    assert nll.user_attrs.items() >= {"objective": "nll", "role": "baseline", "mlflow_run_id": "a" * 32}.items()
    assert searched[1].params == {"exponent": 1.5, "thresholded": True, "threshold": 0.2}
    assert (searched[1].value, searched[1].user_attrs["stop_reason"]) == (1.3, "reason")
    assert study.best_trial.number == 4
    assert all(trial.datetime_start <= trial.datetime_complete for trial in study.trials if trial.state.is_finished())
    assert {path.name for path in study_folder(config).iterdir()} == {"trials", FILE}


def test_it_is_written_anew_each_time(config: SweepConfig, ledger: Ledger) -> None:
    path = write_optuna(config, CAPABILITY, ledger, {})
    before = path.stat().st_ino
    for trial in baselines(config)[:1]:
        ledger.begin(trial)
    assert write_optuna(config, CAPABILITY, ledger, {}).stat().st_ino != before
    assert len(optuna.load_study(study_name="sweep/tiny", storage=f"sqlite:///{path}").trials) == 9


def test_a_dashboard_shows_it(config: SweepConfig, ledger: Ledger) -> None:
    path = write_optuna(config, CAPABILITY, ledger, {})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), "--host", "127.0.0.1", "--port", str(port)]
    server = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [*command, f"sqlite:///{path}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            wait(server, process)
            (summary,) = requests.get(f"{server}/api/studies", timeout=30).json()["study_summaries"]
            assert summary["study_name"] == "sweep/tiny"
            study = requests.get(f"{server}/api/studies/{summary['study_id']}", timeout=30).json()
        finally:
            process.kill()
    assert [trial["state"] for trial in study["trials"]] == ["Complete"] * 5 + ["Pruned", "Fail", "Running"]
    assert [trial.get("values") for trial in study["trials"]][:5] == [[0.4]] * 4 + [[0.3]]
    named = {pair["key"]: pair["value"] for pair in study["trials"][1]["user_attrs"]}
    assert named["objective"].strip('"') == "-p"


def wait(server: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        try:
            requests.get(f"{server}/api/meta", timeout=30)
            return
        except requests.ConnectionError:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.1)
    raise AssertionError("the dashboard did not start")
