"""The report as a user gets it: the page, its files, what is said, and what MLflow keeps."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from raysft.config import SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.objectives import Power
from raysft.report import report
from raysft.results import Study, studies
from raysft.tracking import Tracking, tracking_uri
from raysft.verdict import judge

Made = Any  # the fixture of conftest.py
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Raises AssertionError for a tag that is closed where it is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def parsed(written: Path) -> Page:
    return Page(written.read_text())


def quiet(_: str) -> None:
    pass


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(written: Path, parsed: Page) -> None:
    text = written.read_text()
    assert {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "base"} == set()
    assert parsed.values("src") == []
    assert all(link.startswith("#") for name in ("href", "xlink:href") for link in parsed.values(name))
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", text))
    assert set(re.findall(r"https?://[^\"' <>]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in text


def test_each_id_of_the_page_is_one_things_and_every_reference_leads_to_one(written: Path, parsed: Page) -> None:
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    references = [*parsed.values("xlink:href"), *re.findall(r"url\(([^)]*)\)", written.read_text())]
    assert len(references) > 100
    assert {reference.removeprefix("#") for reference in references} <= set(ids)


def test_figures_say_in_words_what_they_show(parsed: Page) -> None:
    images = [attributes for _, attributes in parsed.tags if attributes.get("role") == "img"]
    assert len(images) == page_figures(parsed) > 10
    assert all(attributes["aria-label"] for attributes in images)


def page_figures(parsed: Page) -> int:
    return sum(tag == "figure" for tag, _ in parsed.tags)


def test_the_answer_stands_first_and_is_said(written: Path, parsed: Page, found: dict[str, Study]) -> None:
    sentences = [judge(study).sentence for study in found.values()]
    words = [text.strip() for text in parsed.text]
    assert [word for word in words if word in sentences] == sentences
    said = (written.parent / "said.txt").read_text().splitlines()
    assert said == [*sentences, f"Report: {written}"]


def test_values_of_the_table_are_those_of_the_trials(parsed: Page, found: dict[str, Study]) -> None:
    cells = [text.strip() for text in parsed.text]
    weak = found["weak"]
    for trial in weak.compared():
        error = weak.error(trial)
        assert error is not None
        value, reach = weak.value(trial) or 0.0, 1.96 * error
        assert f"{value:.3f} [{value - reach:.2f}, {value + reach:.2f}]" in cells
    assert "0.050, weak" in cells
    assert "0.852, strong" in cells
    assert "the loss is nan" in cells


def test_every_figure_lies_beside_the_page(written: Path, parsed: Page) -> None:
    names = {path.stem for path in written.parent.glob("*.png")}
    assert names == {path.stem for path in written.parent.glob("*.svg")}
    assert len(names) == page_figures(parsed)
    assert {
        "continuum",
        "strong-exponent",
        "mid-threshold",
        "mid-heat-above",
        "mid-heat-below",
        "mid-parallel",
    } <= names
    assert {"weak-weight", "weak-curves"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.parent.glob("*.png"))


def test_the_same_runs_give_the_same_bytes(swept: SweepConfig, written: Path, tmp_path: Path) -> None:
    report([swept.folder], tmp_path, None, False, quiet)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) > 20
    for name, content in files.items():
        assert (written.parent / name).read_bytes() == content, name


def test_mlflow_keeps_page_and_figures(swept: SweepConfig, written: Path, found: dict[str, Study]) -> None:
    client = MlflowClient(tracking_uri(swept))
    for study in found.values():
        kept = {file.path for file in client.list_artifacts(study.run_id, "report")}
        assert kept == {f"report/{path.name}" for path in written.parent.iterdir() if path.suffix != ".txt"}
    again = client.download_artifacts(found["mid"].run_id, "report/report.html", None)
    assert Path(again).read_bytes() == written.read_bytes()


# --- what is odd or missing -------------------------------------------------------------------------------------------


def test_names_of_others_do_no_harm(made: Made, tmp_path: Path) -> None:
    """Anybody may write to a shared MLflow."""
    evil = "../<script>alert('$x$')</script>&amp;\"'"
    config = made.sweep()
    made.track(config.for_backbone("tiny"), made.trials(0.5))
    (study,) = studies([config.folder])
    client = MlflowClient(study.uri)
    experiment = client.get_run(study.run_id).info.experiment_id
    parent = client.create_run(experiment, tags={"raysft.study": "x"}, run_name=evil).info.run_id
    client.log_param(parent, "backbone", evil)
    client.log_text(parent, study.capability.to_json() if study.capability else "", "probe.json")
    for number in range(3):
        tags = {"mlflow.parentRunId": parent, "raysft.trial_id": f"{number}{evil}", "stop_reason": evil}
        child = client.create_run(experiment, tags=tags, run_name=evil).info.run_id
        client.log_metric(child, "eval/accuracy", number / 4, step=5)
        client.log_metric(child, "train/loss", 1.0, step=1)
        client.log_metric(child, "train/loss", 0.5, step=2)
        for name, value in {"objective": "power" if number else evil, "exponent": str(number)}.items():
            client.log_param(child, name, value)
        client.set_terminated(child)
    path = report([config.folder], tmp_path / "out", None, False, quiet)
    parsed = Page(path.read_text())
    assert {tag for tag, _ in parsed.tags} & {"script", "img"} == set()
    assert evil in "".join(parsed.text)
    assert parsed.text.count(evil) > 5
    assert {file.parent for file in (tmp_path / "out").rglob("*")} == {tmp_path / "out"}
    assert len(list((tmp_path / "out").glob("*script*.svg"))) > 1


def report_text(config: SweepConfig, output: Path) -> str:
    return " ".join("".join(Page(report([config.folder], output, None, False, quiet).read_text()).text).split())


def test_a_study_without_finished_trials_is_shown_as_far_as_it_goes(made: Made, tmp_path: Path) -> None:
    config = made.sweep()
    others = dict.fromkeys(range(4), ("FAILED", "the loss is nan at step 3"))
    made.track(config.for_backbone("tiny"), made.trials(), others=others)
    text = report_text(config, tmp_path)
    assert "no trial has finished with eval/accuracy" in text
    assert "Fewer than two exponents" in text
    assert "The capability continuum is not drawn." in text
    assert text.count("the loss is nan at step 3") == 4


def test_a_study_that_has_just_begun_is_shown(made: Made, tmp_path: Path) -> None:
    config = made.sweep().for_backbone("tiny")
    Tracking(config).start_study(config)
    text = report_text(config, tmp_path)
    assert "The study still runs" in text
    assert "Its probe.json is missing" in text
    assert "All 0 trials" in text


def test_settings_of_another_version_leave_the_figures(made: Made, tmp_path: Path) -> None:
    config = made.sweep()
    made.track(config.for_backbone("tiny"), made.trials(0.5, 2))
    (study,) = studies([config.folder])
    MlflowClient(study.uri).log_text(study.run_id, "of: {another: version}", "config.yaml")
    text = report_text(config, tmp_path)
    assert "config.yaml is missing or of another version" in text
    assert text.count("unknown") >= 3, "hours and tokens"
    assert (tmp_path / "tiny-exponent.svg").exists()


def test_a_metric_that_falls_has_its_figures(made: Made, tmp_path: Path) -> None:
    config = made.sweep(search={"metric": "eval/nll"}).for_backbone("tiny")
    study = Tracking(config).start_study(config)
    study.log_capability(made.capable(0.5).to_dict())
    grid = [Power(exponent=a, threshold=t) for a in (0, 0.5, 1) for t in (None, 0.2, 0.4)]
    for i, objective in enumerate(grid):
        study.start_trial(str(i), TrialConfig(objective=objective, learning_rate=1e-3, seed=0))
        study.log_points(str(i), [{"step": s, "time": 1.0, "eval/nll": 2 - i / 10 + 1 / s} for s in (1, 2)])
        study.end_trial(str(i), "FINISHED")
    study.end("FINISHED")
    text = report_text(config, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.svg")}
    assert names == {
        "continuum",
        *(f"tiny-{n}" for n in ["exponent", "threshold", "heat-above", "weight", "curves", "parallel"]),
    }
    assert "Its standard error was not tracked." in text
    assert "eval/nll" in (tmp_path / "tiny-curves.svg").read_text(), "held-out curves are there where they were taken"


def test_sweeps_of_one_name_of_backbone_do_not_overwrite_each_other(made: Made, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made.track(made.sweep(name=name).for_backbone("tiny"), made.trials(0.5))
    folders = [made.output / name for name in ("one", "two")]
    page = report(folders, None, None, False, quiet)
    assert page == made.output / "one" / "report" / "report.html"
    assert {"one-tiny-exponent.svg", "two-tiny-exponent.svg"} <= {path.name for path in page.parent.iterdir()}


def test_a_folder_that_cannot_be_written_and_a_store_that_takes_nothing(made: Made, tmp_path: Path) -> None:
    config = made.sweep()
    made.track(config.for_backbone("tiny"), made.trials())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        report([config.folder], tmp_path / "file", None, False, quiet)
    artifacts = made.output / "mlartifacts"
    for run in artifacts.iterdir():
        (run / "artifacts" / "report").touch()  # a file where the folder would be
    with pytest.raises(TrialFailed, match="does not take the report"):
        report([config.folder], tmp_path / "out", None, True, quiet)
    assert (tmp_path / "out" / "report.html").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "raysft", "report", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_command_takes_the_newest_sweep_under_runs(swept: SweepConfig, written: Path, tmp_path: Path) -> None:
    done = command("--no-log", "--output", tmp_path, cwd=swept.output.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4
    assert (tmp_path / "report.html").read_bytes() == written.read_bytes()


def test_the_command_refuses_in_one_line(swept: SweepConfig, tmp_path: Path) -> None:
    for cwd, arguments in ((tmp_path, ()), (tmp_path, ("absent.yaml",)), (swept.output.parent, ("maed",))):
        done = command(*arguments, cwd=cwd)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "Did you mean 'made'?" in done.stderr
