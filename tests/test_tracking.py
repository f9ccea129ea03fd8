"""Tracking against real stores: sqlite, and a real `mlflow server` that is stopped, started and forgets to answer."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from raysft.config import FileSource, HubSource, ReasoningGymSource, SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.objectives import Power
from raysft.records import read_records, write_records
from raysft.tracking import TABLE, Evaluations, Study, Tracking, open_to_read, spool, tracking_uri
from raysft.tracking import study as writing
from raysft.tracking.answer import keep_answer
from raysft.tracking.describing import NOTE, params_of

fork = multiprocessing.get_context("fork")

NLL = TrialConfig(objective=Power(), learning_rate=1e-3, seed=0, role="baseline")
SHARP = TrialConfig(objective=Power(exponent=10, threshold=0.2), learning_rate=1e-3, seed=0, quantile=0.5)
PROBE = {"mean_probability": 0.42, "share_above_0.55": 0.3, "tokens": 900, "quantiles": [0.1, 0.4, 0.8]}
METRICS = ("eval/accuracy", "eval/nll", "eval/mean_probability", "train/loss", "train/tokens_per_second")
FOCAL = TrialConfig(objective={"type": "focal", "gamma": 3}, learning_rate=1e-3, seed=0)
PARAMS = {"backbone", "objective", "exponent", "threshold", "upper", "keep", "learning_rate", "seed"}


def test_trials_of_all_objectives_share_the_contracts_parameters() -> None:
    power, focal = params_of("tiny", NLL), params_of("tiny", FOCAL)
    assert focal.keys() == power.keys() | {"focal.gamma"}
    assert power.keys() >= PARAMS
    assert (focal["objective"], focal["focal.gamma"], focal["exponent"]) == ("focal", 3.0, None)


def point(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, "time": 1.7e9 + step / 10, "train/loss": 1 / (step + 1), **metrics}


def history(study: Study, trial_id: str, metric: str = "train/loss") -> list[tuple[int, float]]:
    """Step and value of all that is stored, in the order of the steps."""
    (row,) = [row for row in study.trials() if row["trial_id"] == trial_id]
    found = study._runs.client.get_metric_history(row["run_id"], metric)
    return sorted((m.step, m.value) for m in found)


def steps(study: Study, trial_id: str, metric: str = "train/loss") -> list[int]:
    return [step for step, _ in history(study, trial_id, metric)]


def statuses(study: Study) -> dict[str, str]:
    return {row["trial_id"]: row["status"] for row in study.trials()}


def children(config: SweepConfig) -> list[Run]:
    return [run for run in all_runs(config) if "mlflow.parentRunId" in run.data.tags]


def all_runs(config: SweepConfig) -> list[Run]:
    client = MlflowClient(tracking_uri(config))
    return list(client.search_runs([client.get_experiment_by_name(config.name).experiment_id]))


def artifact(uri: str, run_id: str, name: str, to: Path) -> str:
    return Path(MlflowClient(uri).download_artifacts(run_id, name, str(to))).read_text()


# --- places ---------------------------------------------------------------------------------------------------------


def sweep_in(output: Path, uri: str | None = None, name: str = "sweep") -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": name,
            "output": str(output),
            "backbones": [{"name": "tiny", "path": "models/tiny"}, {"name": "small", "path": "models/small"}],
            "data": {"train": {"kind": "file", "path": "train.jsonl"}},
            "search": {"metric": "eval/nll"},
            "tracking": {"uri": uri, "tags": {"domain": "math"}},
        }
    )


def fresh(migrated: Path, output: Path) -> SweepConfig:
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, output / "mlflow.db")
    return sweep_in(output)


@pytest.fixture
def config(migrated: Path, tmp_path: Path) -> SweepConfig:
    """A sweep over two backbones that tracks to a sqlite of its own."""
    return fresh(migrated, tmp_path / "runs with space")


@pytest.fixture
def tiny(config: SweepConfig) -> SweepConfig:
    return config.for_backbone("tiny")


class Server:
    """A real `mlflow server` on loopback."""

    def __init__(self, folder: Path, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        self.start()

    def start(self) -> None:
        """Begins to start it; `wait` until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | settings, start_new_session=True
            )

    def wait(self) -> "Server":
        for _ in range(1200):
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return self
            except requests.RequestException:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module", autouse=True)
def starting_server(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Server]:
    """Starts with the module, so that it is up when the first test needs it."""
    server = Server(tmp_path_factory.mktemp("server"), migrated)
    yield server
    server.stop()


@pytest.fixture
def server(starting_server: Server) -> Server:
    return starting_server.wait()


@pytest.fixture(params=["sqlite", "server"])
def anywhere(request: pytest.FixtureRequest, config: SweepConfig) -> SweepConfig:
    if request.param == "sqlite":
        return config
    return sweep_in(config.output, request.getfixturevalue("server").uri, "anywhere")


# --- the contract ---------------------------------------------------------------------------------------------------


def test_runs_hold_what_the_contract_says(anywhere: SweepConfig, tmp_path: Path) -> None:
    sweep = Tracking(anywhere)
    study = sweep.start_study(anywhere.for_backbone("tiny"))
    study.log_capability(PROBE)
    study.log_data("train", FileSource(path=Path("data/train.jsonl")), "f" * 64, {"kept": 60, "tokens": 900})
    study.log_data("heldout", ReasoningGymSource(task="figlet_font", size=9), "0a", {"kept": 9})
    study.start_trial("t1", NLL)
    study.start_trial("t2", SHARP)
    for trial_id in ("t1", "t2"):
        study.log_points(trial_id, [point(1), point(2, **dict.fromkeys(METRICS, 0.5))])
        study.end_trial(trial_id, "FINISHED")
    study.end("FINISHED", {"eval/nll": 0.5, "verdict": "the sharp one"})

    parent = MlflowClient(sweep.uri).get_run(study.run_id)
    assert parent.info.experiment_id == sweep.experiment_id
    assert (parent.info.run_name, parent.info.status) == ("tiny", "FINISHED")
    assert parent.data.params == {"backbone": "tiny", "path": "models/tiny", "revision": "none"}
    assert parent.data.tags["raysft.study"] == f"{anywhere.name}/tiny"
    assert parent.data.tags["verdict"] == "the sharp one"
    assert parent.data.tags["data/train/kept"] == "60"
    assert all(parent.data.tags[f"version/{name}"] for name in ("ray", "torch", "transformers", "deepspeed", "raysft"))
    assert parent.data.metrics["best/eval/nll"] == 0.5
    assert parent.data.metrics["capability/share_above_0.55"] == 0.3
    used = {i.tags[0].value: i.dataset for i in parent.inputs.dataset_inputs}
    assert (used["train"].name, used["train"].digest) == ("data/train.jsonl", "f" * 8)
    assert json.loads(used["heldout"].source)["task"] == "figlet_font"
    written = SweepConfig.model_validate(yaml.safe_load(artifact(sweep.uri, study.run_id, "config.yaml", tmp_path)))
    assert written == anywhere.for_backbone("tiny")
    assert json.loads(artifact(sweep.uri, study.run_id, "probe.json", tmp_path)) == PROBE

    nll, sharp = children(anywhere)[::-1]
    assert nll.data.tags["mlflow.parentRunId"] == sharp.data.tags["mlflow.parentRunId"] == study.run_id
    assert nll.data.params.keys() == sharp.data.params.keys() >= PARAMS
    assert nll.data.metrics.keys() == sharp.data.metrics.keys() >= {*METRICS, "capability/mean_probability"}
    assert (nll.info.run_name, nll.data.params["threshold"]) == ("nll", "0.0")
    assert (sharp.info.run_name, sharp.data.params["threshold"]) == ("-p^10, p >= 0.2", "0.2")
    assert (sharp.data.params["exponent"], sharp.data.tags["quantile"]) == ("10.0", "0.5")
    tags = {"sweep": anywhere.name, "backbone": "tiny", "domain": "math"}
    for run, role in ((parent, "study"), (nll, "baseline"), (sharp, "search")):
        assert run.data.tags.items() >= {**tags, "role": role}.items()
        assert {i.dataset.digest for i in run.inputs.dataset_inputs} == {"f" * 8, "0a"}
    assert sharp.data.tags[NOTE] == (
        "Searched on tiny (capability 0.420): -p^10, p >= 0.2, learning rate 0.001, seed 0."
    )
    assert parent.data.tags[NOTE].startswith("tiny in sweep")
    assert "Capability 0.420" in parent.data.tags[NOTE]
    assert sharp.data.metrics["capability/mean_probability"] == 0.42
    assert TrialConfig.model_validate_json(artifact(sweep.uri, sharp.info.run_id, "trial.json", tmp_path)) == SHARP


def test_each_end_has_its_status_and_none_stays_running(tiny: SweepConfig, tmp_path: Path) -> None:
    records = tmp_path / "completions.jsonl.gz"
    write_records([{"task": "t", "problem": 0, "reference": "2", "completion": "2"}], records)
    study = Tracking(tiny).start_study(tiny)
    for trial_id in ("finished", "stopped", "failed", "unfinished"):
        study.start_trial(trial_id, NLL)
        study.log_points(trial_id, [point(1, **{"eval/nll": 2.0}), point(2)])
    study.end_trial("finished", "FINISHED", completions=records, summary={"eval/nll": 1.0, "train/loss": 9.0})
    study.end_trial("stopped", "KILLED", "stopped early at step 2")
    study.end_trial("failed", "FAILED", "loss is not finite at step 2")
    study.end("KILLED")

    rows = {row["trial_id"]: row for row in study.trials()}
    assert statuses(study) == {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "unfinished": "KILLED"}
    assert rows["finished"]["stop_reason"] == ""
    assert rows["stopped"]["stop_reason"] == "stopped early at step 2"
    assert rows["failed"]["stop_reason"] == "loss is not finite at step 2"
    assert rows["unfinished"]["stop_reason"] == "sweep stopped"
    assert history(study, "finished", "eval/nll") == [(1, 2.0), (2, 1.0)]
    assert rows["finished"]["train/loss"] == 1 / 3, "a summary replaces no point"
    assert {run.info.status for run in all_runs(tiny)} == {"FINISHED", "KILLED", "FAILED"}
    kept = MlflowClient(Tracking(tiny).uri).download_artifacts(
        rows["finished"]["run_id"], records.name, str(tiny.output)
    )
    assert Path(kept).read_bytes() == records.read_bytes()


def test_completions_are_a_table_that_mlflow_loads(
    tiny: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written twice, as after a request whose answer was lost: no row is doubled."""
    records = [
        {"task": "t", "problem": i, "reference": "two", "completion": f"so\n{i}", "answer": None, "score": i / 4}
        for i in range(4)
    ]
    write_records(records, tmp_path / "completions.jsonl.gz")
    sweep = Tracking(tiny)
    study = sweep.start_study(tiny)
    study.start_trial("a", NLL)
    for _ in range(2):
        study.end_trial("a", "FINISHED", completions=tmp_path / "completions.jsonl.gz")
    study.end("FINISHED")
    (row,) = study.trials()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sweep.uri)  # load_table searches where that leads
    table = MlflowClient().load_table(sweep.experiment_id, TABLE, [row["run_id"]])
    assert table.astype(object).where(table.notna(), None).to_dict("records") == records
    whole = MlflowClient(sweep.uri).download_artifacts(row["run_id"], "completions.jsonl.gz", str(tmp_path))
    assert read_records(Path(whole)) == records


def test_one_models_scores_are_a_run_of_their_own(tmp_path: Path) -> None:
    record = {"task": "t", "problem": 0, "reference": "2", "completion": "2", "score": 1.0}
    write_records([record], tmp_path / "completions.jsonl.gz")
    for _ in range(2):
        evaluations = Evaluations(tmp_path, None)
        evaluations.log("m", {"seed": 0}, {"eval/t/accuracy": 1.0}, tmp_path / "completions.jsonl.gz")
    client = MlflowClient(evaluations.uri)
    experiment = client.get_experiment_by_name("evaluation")
    runs = client.search_runs([experiment.experiment_id])
    assert [(r.info.run_name, r.info.status, r.data.metrics) for r in runs] == [
        ("m", "FINISHED", {"eval/t/accuracy": 1.0})
    ] * 2
    with pytest.raises(InputError, match=r"MLflow cannot be used"):
        Evaluations(tmp_path, "http://127.0.0.1:9")
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrialFailed, match="does not take the run"):
        evaluations.log("m", {}, {})
    with pytest.raises(InputError, match="was deleted"):
        Evaluations(tmp_path, None)


def test_studies_of_a_sweep_share_its_experiment(config: SweepConfig) -> None:
    sweep = Tracking(config)
    first = sweep.start_study(config.for_backbone("tiny"))
    first.start_trial("a", NLL)
    first.end("FINISHED")
    second = sweep.start_study(config.for_backbone("small"))
    second.start_trial("b", NLL)
    assert statuses(first) == {"a": "KILLED"}
    assert statuses(second) == {"b": "RUNNING"}
    assert children(config)[0].data.params["backbone"] == "small"


# --- resume, and each point once --------------------------------------------------------------------------------------


def test_a_resumed_study_goes_on_in_its_runs(tiny: SweepConfig) -> None:
    before = Tracking(tiny).start_study(tiny)
    before.log_capability(PROBE)
    for trial_id in ("done", "cut"):
        before.start_trial(trial_id, NLL)
        before.log_points(trial_id, [point(step) for step in range(1, 8)])
    before.end_trial("done", "FINISHED")
    before.end("KILLED")

    after = Tracking(tiny).start_study(tiny, resume=True)
    assert after.run_id == before.run_id
    after.log_capability(PROBE)
    after.start_trial("cut", NLL)
    assert statuses(after) == {"done": "FINISHED", "cut": "RUNNING"}
    assert "stop_reason" not in children(tiny)[0].data.tags
    after.log_points("cut", [point(step) for step in range(5, 12)])
    after.end_trial("cut", "FINISHED")
    after.end("FINISHED")
    assert statuses(after) == {"done": "FINISHED", "cut": "FINISHED"}
    assert steps(after, "cut") == list(range(1, 12))
    assert steps(after, "cut", "capability/mean_probability") == [0]
    assert len(all_runs(tiny)) == 3
    assert all_runs(tiny)[-1].info.status == "FINISHED"


def test_a_run_elsewhere_of_the_same_name_is_another_study(config: SweepConfig, tmp_path: Path) -> None:
    shared = sweep_in(config.output, f"sqlite:///{config.output / 'mlflow.db'}").for_backbone("tiny")
    other = shared.model_copy(update={"output": tmp_path / "other"})
    mine = Tracking(shared).start_study(shared)
    others = Tracking(other).start_study(other)
    assert mine.run_id != others.run_id
    assert Tracking(shared).start_study(shared, resume=True).run_id == mine.run_id


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 12), st.integers(1, 5), st.booleans()), min_size=1),
)
def test_redone_steps_are_stored_once(tiny: SweepConfig, attempts: list[tuple[int, int, int, bool]]) -> None:
    """Attempts go back some steps and on for more, in parts of some size, in the same process or a new one."""
    study, trial_id, last = Tracking(tiny).start_study(tiny, resume=True), uuid.uuid4().hex, 0
    stored: dict[str, dict[int, float]] = {"train/loss": {}, "eval/nll": {}}
    for value, (back, on, part, new_process) in enumerate(attempts):
        if new_process:
            study = Tracking(tiny).start_study(tiny, resume=True)
        study.start_trial(trial_id, NLL)
        points = []
        for step in range(max(1, last + 1 - back), last + 1 + on):
            points.append({"step": step, "time": time.time(), "train/loss": value})
            stored["train/loss"].setdefault(step, value)
            if step % 3 == 0:
                points[-1]["eval/nll"] = value
                stored["eval/nll"].setdefault(step, value)
        for start in range(0, len(points), part):
            study.log_points(trial_id, points[start : start + part])
        last = max(last, points[-1]["step"])
    assert steps(study, trial_id) == list(range(1, last + 1))
    for metric, values in stored.items():
        assert dict(history(study, trial_id, metric)) == values
        assert len(history(study, trial_id, metric)) == len(values)


def test_values_that_are_not_finite_are_stored(anywhere: SweepConfig) -> None:
    config = anywhere.for_backbone("tiny")
    study = Tracking(config).start_study(config)
    study.start_trial("odd", NLL)
    study.log_points("odd", [point(1, x=math.nan), point(2, x=math.inf), point(3, x=-math.inf), point(4, x=1.0)])
    first, second, third, fourth = [value for _, value in history(study, "odd", "x")]
    assert math.isnan(first)
    assert (second, third, fourth) == (sys.float_info.max, -sys.float_info.max, 1.0)


def test_more_metrics_than_a_request_holds(anywhere: SweepConfig) -> None:
    config = anywhere.for_backbone("tiny")
    study = Tracking(config).start_study(config)
    study.start_trial("long", NLL)
    study.log_points("long", [point(step, **{"eval/nll": 1.0}) for step in range(1300)])
    assert steps(study, "long") == steps(study, "long", "eval/nll") == list(range(1300))


# --- faults ---------------------------------------------------------------------------------------------------------


def test_a_killed_driver_loses_and_doubles_nothing(migrated: Path, tmp_path: Path) -> None:
    config = fresh(migrated, tmp_path / "runs").for_backbone("tiny")
    draw = random.Random(0)

    def drive(pause: float) -> Study:
        study = Tracking(config).start_study(config, resume=True)
        study.start_trial("t", NLL)
        for step in range(1, 31):
            study.log_points("t", [point(step)])
            time.sleep(pause)
        study.end_trial("t", "FINISHED")
        study.end("FINISHED")
        return study

    for _ in range(4):
        driver = fork.Process(target=drive, args=(0.1,))
        driver.start()
        driver.join(draw.uniform(0.3, 1.5))
        driver.kill()
        driver.join()
    study = drive(0)
    assert steps(study, "t") == list(range(1, 31))
    assert [run.info.status for run in all_runs(config)] == ["FINISHED", "FINISHED"]


def test_a_locked_database_is_waited_for(tiny: SweepConfig) -> None:
    study = Tracking(tiny).start_study(tiny)
    study.start_trial("t", NLL)
    other = sqlite3.connect(tiny.output / "mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(3.0, other.rollback)
    release.start()
    started = time.monotonic()
    study.log_points("t", [point(1), point(2)])
    assert time.monotonic() - started > 2, "the lock held nothing up"
    study.log_points("t", [point(3)])
    release.join()
    other.close()
    assert steps(study, "t") == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.faults
def test_eight_writers_wait_for_a_locked_database(migrated: Path, tmp_path: Path) -> None:
    """Eight sweeps that share one sqlite file, which something else holds for 20 seconds."""
    output = tmp_path / "runs"
    config = fresh(migrated, output)
    sweeps = [config.model_copy(update={"name": f"sweep-{n}"}).for_backbone("tiny") for n in range(8)]
    begun, answers = fork.Barrier(9), fork.SimpleQueue()

    def write(sweep: SweepConfig) -> None:
        study = Tracking(sweep).start_study(sweep)
        study.start_trial("t", NLL)
        begun.wait()
        for step in range(1, 26):
            study.log_points("t", [point(step)])
            time.sleep(0.2)
        study.end_trial("t", "FINISHED")
        study.end("FINISHED")
        answers.put((sweep.name, steps(study, "t")))

    writers = [fork.Process(target=write, args=(sweep,)) for sweep in sweeps]
    for writer in writers:
        writer.start()
    begun.wait()
    other = sqlite3.connect(output / "mlflow.db", isolation_level=None, timeout=60)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(20)
    other.rollback()
    other.close()
    assert dict(answers.get() for _ in writers) == {sweep.name: list(range(1, 26)) for sweep in sweeps}
    for writer in writers:
        writer.join()


def test_a_server_that_is_away_for_a_while(
    config: SweepConfig, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = sweep_in(config.output, server.uri, "outage")
    sweep = Tracking(config)
    study = sweep.start_study(config.for_backbone("tiny"))
    study.log_capability(PROBE)
    study.start_trial("before", NLL)
    study.log_points("before", [point(1), point(2)])
    server.stop()
    started = time.monotonic()
    study.log_points("before", [point(3)])
    study.start_trial("during", SHARP)
    for step in range(4, 40):
        study.log_points("before", [point(step)])
        study.log_points("during", [point(step)])
    study.end_trial("during", "KILLED", "stopped early")
    later = sweep.start_study(config.for_backbone("small"))
    assert later.run_id == ""
    assert time.monotonic() - started < 5, "an outage holds the sweep up"
    time.sleep(float(os.environ.get("OUTAGE_SECONDS", "0")))
    assert [record.getMessage() for record in caplog.records] == [
        f"MLflow at {server.uri} fails (no server answers there). Training goes on; what MLflow misses is written when "
        "it works again."
    ]
    server.start()
    server.wait()
    study.log_points("before", [point(step) for step in range(45)])
    study.end_trial("before", "FINISHED")
    study.end("FINISHED", {"eval/nll": 0.5})
    later.end("FINISHED")
    assert caplog.records[-1].getMessage() == f"MLflow at {server.uri} works again."
    assert steps(study, "before") == list(range(1, 45))
    assert steps(study, "during") == list(range(4, 40))
    assert statuses(study) == {"before": "FINISHED", "during": "KILLED"}
    assert len(all_runs(config)) == 4
    assert {run.info.status for run in all_runs(config)} == {"FINISHED", "KILLED"}
    (during,) = [run for run in children(config) if run.info.status == "KILLED"]
    assert during.data.params["exponent"] == "10.0"
    assert TrialConfig.model_validate_json(artifact(server.uri, during.info.run_id, "trial.json", tmp_path)) == SHARP


class Forgetful(ThreadingHTTPServer):
    """Passes requests on to a server; while `forgets`, the first answer to each write of a run is lost."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Forwarder)
        self.uri, self.target = f"http://127.0.0.1:{self.server_port}", target
        self.forgets, self.lost = False, set[tuple[str, bytes]]()

    def loses(self, path: str, body: bytes) -> bool:
        writes = path.endswith(("runs/create", "runs/log-batch", "runs/update"))
        if not (self.forgets and writes) or (path, body) in self.lost:
            return False
        self.lost.add((path, body))
        return True


class Forwarder(BaseHTTPRequestHandler):
    server: Forgetful

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        answer = requests.request(self.command, self.server.target + self.path, data=body, headers=headers, timeout=30)
        if self.server.loses(self.path, body):
            self.close_connection = True
            return
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def forgetful(server: Server) -> Iterator[Forgetful]:
    between = Forgetful(server.uri)
    threading.Thread(target=between.serve_forever, daemon=True).start()
    yield between
    between.shutdown()
    between.server_close()


def test_a_write_whose_answer_is_lost_is_not_doubled(
    config: SweepConfig, forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "LONGEST_PAUSE_SECONDS", 0.05)
    config = sweep_in(config.output, forgetful.uri, "forgotten").for_backbone("tiny")
    study = Tracking(config).start_study(config)
    forgetful.forgets = True
    for trial_id in ("a", "b"):
        study.start_trial(trial_id, NLL)
        for step in range(1, 6):
            study.log_points(trial_id, [point(step)])
        study.end_trial(trial_id, "FINISHED")
    study.end("FINISHED")
    assert {path.rsplit("/")[-1] for path, _ in forgetful.lost} == {"create", "log-batch", "update"}
    assert len(forgetful.lost) > 10
    assert len(all_runs(config)) == 3
    assert [steps(study, trial_id) for trial_id in ("a", "b")] == [[1, 2, 3, 4, 5]] * 2
    assert statuses(study) == {"a": "FINISHED", "b": "FINISHED"}


def test_what_could_not_be_written_at_the_end_is_said(
    config: SweepConfig, forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "END_SECONDS", 0.5)
    config = sweep_in(config.output, forgetful.uri, "unsaid").for_backbone("tiny")
    study = Tracking(config).start_study(config)
    forgetful.target = "http://127.0.0.1:9"
    study.start_trial("a", NLL)
    study.end("FINISHED")
    assert "lacks 3 writes" in caplog.records[-1].getMessage()


def test_a_refused_write_is_left_out_and_said_once(tiny: SweepConfig, caplog: pytest.LogCaptureFixture) -> None:
    study = Tracking(tiny).start_study(tiny)
    study.start_trial("t", NLL)
    study.log_points("t", [point(1, **{"not a name!?": 1.0})])
    study.log_points("t", [point(1, **{"not a name!?": 1.0})])
    study.log_points("t", [point(2)])
    study.end_trial("t", "FINISHED", completions=tiny.output / "missing.gz")
    study.end("FINISHED")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "not a name" in said[0]
    assert "missing.gz" in said[1]
    assert steps(study, "t") == [2]
    assert statuses(study) == {"t": "FINISHED"}


# --- set-up ---------------------------------------------------------------------------------------------------------


def test_cold_starts_at_once(tmp_path: Path) -> None:
    """Eight processes make the same database and experiment at the same instant."""
    config = sweep_in(tmp_path / "runs")
    together, answers = fork.Barrier(8), fork.SimpleQueue()

    def first_use() -> None:
        together.wait()
        try:
            answers.put(Tracking(config).experiment_id)
        except BaseException as error:
            answers.put(repr(error))

    processes = [fork.Process(target=first_use) for _ in range(8)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    assert set(found) == {Tracking(config).experiment_id}


LIFE = """
import sys
from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.tracking import Tracking
config = SweepConfig.model_validate_json(sys.argv[1]).for_backbone("tiny")
study = Tracking(config).start_study(config)
study.start_trial("t", TrialConfig(objective=Power(), learning_rate=1e-3, seed=0))
study.log_points("t", [{"step": 1, "time": 1.0, "train/loss": 1.0}])
study.end_trial("t", "FINISHED")
study.end("FINISHED")
"""


def test_the_libraries_say_nothing(tmp_path: Path, server: Server) -> None:
    for config in (sweep_in(tmp_path / "runs"), sweep_in(tmp_path / "others", server.uri, "quiet")):
        done = subprocess.run(
            [sys.executable, "-c", LIFE, config.model_dump_json()], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(all_runs(config)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "others"}, "nothing is left beside the output"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:9", "no server answers there"),
        ("sqlite:////proc/nowhere/mlflow.db", "No such file"),
        ("mlruns", "maintenance mode"),
        ("ftp://127.0.0.1/x", "unsupported URI"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(tmp_path: Path, uri: str, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=reason) as error:
        Tracking(sweep_in(tmp_path, uri))
    assert time.monotonic() - started < 5
    assert f"tracking.uri '{uri}'" in error.value.place
    assert "Correct tracking.uri" in error.value.fix


def test_a_server_that_hangs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError, match="no server answers"):
        Tracking(sweep_in(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))


def test_an_artifact_store_that_fails_is_refused(config: SweepConfig) -> None:
    sweep = Tracking(config)
    (config.output / "mlartifacts").write_text("a file where the folder would be")
    with pytest.raises(InputError, match="runs or artifacts"):
        sweep.start_study(config.for_backbone("tiny"))


def test_a_deleted_experiment_is_refused(config: SweepConfig) -> None:
    sweep = Tracking(config)
    MlflowClient(sweep.uri).delete_experiment(sweep.experiment_id)
    with pytest.raises(InputError, match="was deleted") as error:
        Tracking(config)
    assert f"--experiment-id {sweep.experiment_id}" in error.value.fix


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_reader_finds_what_was_written(anywhere: SweepConfig) -> None:
    tracking = Tracking(anywhere)
    client = open_to_read(tracking.uri)
    assert client.get_experiment_by_name(anywhere.name).experiment_id == tracking.experiment_id


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{}/nothing/mlflow.db", "holds no runs"),
        ("sqlite:///{}/empty.db", "holds no runs"),
        ("sqlite:///{}/text.db", "not a database"),
        ("http://127.0.0.1:9", "no server answers"),
        ("{}/mlruns", "maintenance mode"),
        ("ftp://127.0.0.1/x", "unsupported URI"),
    ],
)
def test_a_reader_makes_nothing(tmp_path: Path, uri: str, reason: str) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database " * 100)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=reason) as error:
        open_to_read(uri.format(tmp_path))
    assert error.value.place == f"MLflow at {uri.format(tmp_path)}"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- what users see --------------------------------------------------------------------------------------------------


def test_secrets_stay_out(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "hf_" + "canary" * 5
    monkeypatch.setenv("HF_TOKEN", canary)
    backbone = {"name": "tiny", "path": f"https://me:{canary}@host/model"}
    data = {"train": {"kind": "reasoning_gym", "task": "x", "size": 1, "params": {"api_key": canary}}}
    config = SweepConfig.model_validate(config.model_dump() | {"backbones": [backbone], "data": data})
    study = Tracking(config).start_study(config.for_backbone("tiny"))
    study.log_data("train", config.data.train, "0", {})
    study.log_data("heldout", HubSource(path=f"https://me:{canary}@host/data"), "1", {})
    study.start_trial("t", NLL, {"note": f"token={canary}"})
    study.end_trial("t", "FAILED", f"401 for https://me:{canary}@host: {canary}")
    study.end("FAILED", {"verdict": canary})
    files = [path for path in config.output.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml", "trial.json"} <= {path.name for path in files}
    assert [path for path in files if b"canary" in path.read_bytes()] == []


def test_a_study_is_described_by_the_best_that_is_known(tiny: SweepConfig) -> None:
    study = Tracking(tiny).start_study(tiny)
    study.log_capability(PROBE)

    def note() -> str:
        return str(MlflowClient(tracking_uri(tiny)).get_run(study.run_id).data.tags[NOTE])

    assert note() == "tiny in sweep sweep. Capability 0.420 (mean probability of the training targets before training)."
    study.end("FINISHED", {"eval/nll": 0.25, "best_objective": "-p"})
    assert note().endswith("Best eval/nll: 0.250, with -p.")
    keep_answer(tracking_uri(tiny), study.run_id, "For tiny, take -p.", [])
    assert note() == "For tiny, take -p."


def test_the_server_of_the_ui_answers_this_machine_only(server: Server) -> None:
    path = f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert requests.get(path, timeout=30).ok
    assert requests.get(path, headers={"Host": "elsewhere.example"}, timeout=30).status_code == 403


def test_loggers_of_the_libraries_are_silent() -> None:
    """In a process of its own: Optuna's storage, which other tests use, sets alembic's logger as well."""
    names = ("mlflow.store.db.utils", "alembic.runtime")
    code = f"import logging, raysft.tracking; print([logging.getLogger(n).isEnabledFor(40) for n in {names}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[False, False]\n"
