"""`raysft ui` as processes, and what a browser then shows of a sweep that raysft.tracking wrote."""

import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests
from mlflow import MlflowClient

from raysft.config import PAPER_BASELINES, FileSource, SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.records import write_records
from raysft.tracking import Study, Tracking, address, default_uri
from raysft.ui import command
from tests.conftest import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

BACKBONES = {"strong": (0.85, 1.0), "mid": (0.6, 0.4), "weak": (0.05, 0.1)}  # capability, exponent it does best with
SEARCHED = ((0.07, None), (0.3, 0.1), (1.7, 0.35), (5.2, 0.25))
PROBLEMS = 12
CHILDREN = len(BACKBONES) * (len(PAPER_BASELINES) + len(SEARCHED))


def sweep_config(output: Path, **tracking: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "continuum",
            "output": str(output),
            "backbones": [{"name": name, "path": f"models/{name}"} for name in BACKBONES],
            "data": {"train": {"kind": "file", "path": "train.jsonl"}},
            "space": {"threshold": {"low": 0, "high": 0.5}},
            "evaluation": {"generation": {"problems": PROBLEMS}},
            "tracking": {"tags": {"domain": "math"}, **tracking},
        }
    )


def track_trial(study: Study, trial_id: str, trial: TrialConfig, accuracy: float, folder: Path) -> None:
    records = [
        {"task": "generation", "problem": i, "sample": 0, "reference": f"{i}", "completion": f"so {i}", "score": 1.0}
        for i in range(PROBLEMS)
    ]
    write_records(records, folder / "completions.jsonl.gz")
    study.start_trial(trial_id, trial)
    points = [{"step": step, "time": time.time(), "train/loss": 1 / (step + 1)} for step in range(10)]
    last = {"step": 10, "time": time.time(), "eval/accuracy": accuracy, "eval/nll": 1 - accuracy}
    study.log_points(trial_id, [*points, last])
    study.end_trial(trial_id, "FINISHED", completions=folder / "completions.jsonl.gz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A tracked sweep of three studies with eight trials each."""
    folder = tmp_path_factory.mktemp("ui")
    config = sweep_config(folder / "runs")
    sweep = Tracking(config)
    objectives = [(o, "baseline") for o in PAPER_BASELINES]
    objectives += [(Power(exponent=a, threshold=t), "search") for a, t in SEARCHED]
    for name, (capability, best) in BACKBONES.items():
        study = sweep.start_study(config.for_backbone(name))
        study.log_capability({"mean_probability": capability})
        study.log_data("train", FileSource(path=Path("train.jsonl")), "0123456789abcdef", {"kept": 60})
        for number, (objective, role) in enumerate(objectives):
            trial = TrialConfig.model_validate({"objective": objective, "learning_rate": 1e-3, "seed": 0, "role": role})
            accuracy = capability * math.exp(-abs(math.log((objective.exponent + 0.05) / best)) / 3)
            track_trial(study, f"{number:04d}", trial, accuracy, folder)
        study.end("FINISHED", {"eval/accuracy": capability, "best_objective": "-p"})
    return config


@contextmanager
def raysft_ui(*arguments: str, cwd: Path | None = None) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The running command, and the address that it prints."""
    command = [sys.executable, "-m", "raysft", "ui", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("MLflow: http://127.0.0.1:"), (line, process.poll())
            yield process, line.split()[1]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)


def ui(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "raysft", "ui", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_runs_and_leaves_no_process(runs: SweepConfig, number: signal.Signals) -> None:
    port = free_port()
    with raysft_ui(str(runs.folder), "--port", str(port)) as (process, page):
        server = f"http://127.0.0.1:{port}"
        found = requests.get(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=continuum", timeout=30)
        experiment = found.json()["experiment"]
        assert page == address(server, experiment["experiment_id"], charts=True)
        (run, *_) = MlflowClient(default_uri(runs.output)).search_runs(
            [experiment["experiment_id"]], "tags.role = 'search'", max_results=1
        )
        query = {"path": "completions.json", "run_uuid": run.info.run_id}
        assert len(requests.get(f"{server}/get-artifact", query, timeout=30).json()["data"]) == PROBLEMS
        children = psutil.Process(process.pid).children(recursive=True)
        assert {c.laddr.ip for one in children for c in one.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
        process.send_signal(number)
        process.wait(60)
        assert process.returncode == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert not [one for one in children if one.is_running()]
    with pytest.raises(requests.ConnectionError):
        requests.get(server, timeout=5)


def test_all_of_runs_is_shown_without_a_target(runs: SweepConfig) -> None:
    port = free_port()
    with raysft_ui("--port", str(port), cwd=runs.output.parent) as (_, page):
        assert page == f"http://127.0.0.1:{port}"
        assert requests.get(page, timeout=30).ok


def test_a_taken_port_is_refused_with_one_that_is_free(runs: SweepConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ui(str(runs.folder), "--port", str(port))
        assert done.returncode == 2
        found = re.fullmatch(
            rf"raysft: --port {port}: cannot be had: Address already in use. Take another: --port (\d+)\n", done.stderr
        )
        assert found
        with socket.create_server(("127.0.0.1", int(found[1]))):
            pass


@pytest.mark.parametrize("arguments", [(), ("runs",), ("runs/nothing",), ("missing.yaml",)])
def test_what_holds_no_runs_is_refused_and_made_nothing_of(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = ui(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_servers_address_is_printed(runs: SweepConfig) -> None:
    port = free_port()
    with raysft_ui(str(runs.folder), "--port", str(port)) as (_, page):
        server = f"http://127.0.0.1:{port}"
        done = ui("continuum", "--tracking", server)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"MLflow: {page}\n", "")


def test_a_sweep_ends_with_what_opens_its_runs(tmp_path: Path) -> None:
    assert command(sweep_config(Path("runs"))) == "raysft ui runs/continuum"
    assert command(sweep_config(Path("runs"), uri="http://127.0.0.1:5000")) == "http://127.0.0.1:5000"
    remote = command(sweep_config(Path("runs"), uri="postgresql://me:secret@host/runs"))
    assert remote.startswith("raysft ui continuum --tracking postgresql://me:")
    assert "secret" not in remote


# --- the pages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(runs: SweepConfig) -> Iterator[str]:
    """The address that `raysft ui` prints for the sweep."""
    with raysft_ui(str(runs.folder), "--port", str(free_port())) as (_, page):
        yield page


def children_of(runs: SweepConfig) -> list[str]:
    client = MlflowClient(default_uri(runs.output))
    experiment = client.get_experiment_by_name(runs.name)
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id], "tags.role != 'study'")]


# What Plotly has drawn in an element: of each trace its type and how many points it has; of parallel coordinates the
# axes, with their categories, or null where they are numbers.
DRAWN = """element => element.data.map(trace => ({
    type: trace.type,
    points: trace.x?.length ?? trace.dimensions.at(0).values.length,
    axes: trace.dimensions?.map(axis => [axis.label, axis.ticktext?.length ? axis.ticktext : null]),
}))"""
# Whether the plot at a place on the page has these axes and is painted.
HAS_AXES = """([at, x, y]) => {
    const plot = document.querySelectorAll('.js-plotly-plot')[at]
    const title = axis => plot.layout?.[axis]?.title?.text ?? plot.layout?.[axis]?.title
    return plot?.querySelector('.main-svg') && title('xaxis') === x && title('yaxis') === y
}"""
OBJECTIVES = [["backbone", ["mid", "strong", "weak"]], ["exponent", None], ["threshold", None]]


@pytest.mark.browser
def test_the_address_opens_on_charts_of_all_trials(page: "Page", server: str) -> None:
    page.goto(server)
    page.get_by_text(f"{CHILDREN} matching runs").wait_for()
    for at, (x, y) in enumerate([("exponent", "eval/accuracy"), ("exponent", "threshold")]):
        page.wait_for_function(HAS_AXES, arg=[at, x, y])
    plots = page.locator(".js-plotly-plot")
    assert sum(trace["points"] for trace in plots.nth(0).evaluate(DRAWN)) == CHILDREN
    assert ("contour", CHILDREN) in [(trace["type"], trace["points"]) for trace in plots.nth(1).evaluate(DRAWN)]
    axes = page.locator(".parcoords text.label")
    axes.nth(3).wait_for()  # drawn after the others
    assert axes.all_text_contents() == ["backbone", "exponent", "threshold", "eval/accuracy"]


@pytest.mark.browser
def test_the_list_has_every_trial_by_its_objective_the_best_first(page: "Page", server: str) -> None:
    page.goto(server.replace("&compareRunsMode=CHART", ""))
    page.get_by_text(f"{CHILDREN} matching runs").wait_for()
    names = page.locator("[data-testid='runs-table-row'], .ag-row").get_by_role("link")
    names.first.wait_for()
    shown = names.all_inner_texts()
    assert shown[:2] == ["-p", "-p^1.7, p >= 0.35"]


@pytest.mark.browser
def test_comparing_all_trials_draws_every_one(page: "Page", server: str, runs: SweepConfig) -> None:
    """Backbone, exponent and threshold are what MLflow takes by itself; its other plots have their axes chosen."""
    base, _, rest = server.partition("/#/experiments/")
    ids = ",".join(f'"{run_id}"' for run_id in children_of(runs))
    page.goto(f'{base}/#/compare-runs?runs=[{ids}]&experiments=["{rest.partition("/")[0]}"]')
    page.get_by_text(f"Comparing {CHILDREN} Runs from 1 Experiment").wait_for()
    plot = page.locator(".js-plotly-plot")
    plot.locator(".main-svg").first.wait_for()
    (parallel,) = plot.evaluate(DRAWN)
    assert (parallel["type"], parallel["points"]) == ("parcoords", CHILDREN)
    assert parallel["axes"][:3] == OBJECTIVES

    page.get_by_role("tab", name="Scatter Plot").click()
    choose(page, "x-axis-selector", "exponent")
    choose(page, "y-axis-selector", "eval/accuracy")
    page.wait_for_function(HAS_AXES, arg=[0, "exponent", "eval/accuracy"])
    assert [trace["points"] for trace in plot.evaluate(DRAWN)] == [CHILDREN]

    page.get_by_role("tab", name="Contour Plot").click()
    choose(page, "yaxis-selector", "threshold")
    choose(page, "zaxis-selector", "eval/accuracy")
    page.wait_for_function(HAS_AXES, arg=[0, "exponent", "threshold"])
    drawn = [(trace["type"], trace["points"]) for trace in plot.evaluate(DRAWN)]
    assert drawn == [("contour", CHILDREN), ("scattergl", CHILDREN)]


def choose(page: "Page", selector: str, key: str) -> None:
    page.locator(f"#{selector}:visible").click()
    page.get_by_role("option", name=key, exact=True).locator("visible=true").click()


@pytest.mark.browser
def test_the_table_of_completions_shows_rows(page: "Page", server: str, runs: SweepConfig) -> None:
    base, _, rest = server.partition("/#/experiments/")
    run_id = children_of(runs)[0]
    page.goto(f"{base}/#/experiments/{rest.partition('/')[0]}/runs/{run_id}/artifacts/completions.json")
    page.get_by_role("columnheader", name="completion").wait_for()
    for number in range(PROBLEMS):
        page.get_by_text(f"so {number}", exact=True).wait_for()
