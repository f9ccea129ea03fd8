"""Sweeps read back from real stores: what comes back is what was tracked, and nothing is made by looking."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

import raysft
from raysft.config import SweepConfig, TrialConfig
from raysft.errors import InputError
from raysft.objectives import known
from raysft.results import _objective, history, scores, studies
from raysft.tracking import Tracking, tracking_uri
from raysft.tracking.study import _params

Made = Any  # the fixture of conftest.py
OTHERS = {2: ("KILLED", "stopped early at step 20"), 3: ("FAILED", "the loss is nan"), 5: ("RUNNING", "")}


@pytest.fixture
def sweep(made: Made) -> SweepConfig:
    """Two backbones; of the first, some trials did not finish."""
    config = made.sweep("mid", "weak")
    made.track(
        config.for_backbone("mid"), made.trials(0.5, 3), capability=made.capable(0.5), others=OTHERS, ended=False
    )
    made.track(config.for_backbone("weak"), made.trials(0.1), made.wants(0), made.capable(0.04))
    return config


def client(config: SweepConfig) -> MlflowClient:
    return MlflowClient(tracking_uri(config))


def refusal(*targets: str | Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as error:
        studies(targets, **options)
    return error.value


# --- what comes back --------------------------------------------------------------------------------------------------


def test_studies_are_what_was_tracked(sweep: SweepConfig, made: Made) -> None:
    mid, weak = studies([sweep.folder])
    assert [(s.sweep, s.backbone, s.status, s.earlier) for s in (mid, weak)] == [
        ("made", "mid", "RUNNING", 0),
        ("made", "weak", "FINISHED", 0),
    ]
    assert mid.config == sweep.for_backbone("mid")
    assert (mid.capability, weak.capability) == (made.capable(0.5), made.capable(0.04))
    assert (mid.metric, mid.mode, mid.notes) == ("eval/accuracy", "max", [])
    assert [t.trial_id for t in mid.trials] == [f"{i:04d}" for i in range(6)]
    assert [t.objective for t in mid.trials] == [t.objective for t in made.trials(0.5, 3)]
    assert [t.label for t in mid.trials[:5]] == ["nll", "-p", "-p^10", "nll, p >= 0.2", "exponent 0.5"]
    assert [t.role for t in mid.trials] == ["baseline"] * 4 + ["search"] * 2
    assert [t.status for t in mid.trials] == ["FINISHED", "FINISHED", "KILLED", "FAILED", "FINISHED", "RUNNING"]
    assert mid.trials[3].stop_reason == "the loss is nan"
    assert {t.steps for t in mid.trials} == {20}
    assert (mid.trials[0].learning_rate, mid.trials[0].seed, mid.trials[0].quantile) == (1e-3, 0, None)
    assert all(t.seconds >= 0 for t in mid.trials)


def test_only_what_finished_is_compared_best_first(sweep: SweepConfig) -> None:
    mid, _ = studies([sweep.folder])
    assert [t.label for t in mid.compared()] == ["-p", "exponent 0.5", "nll"]
    values = [mid.value(t) for t in mid.compared()]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert [mid.value(t) is None for t in mid.trials] == [False, False, True, True, False, True]
    assert mid.error(mid.trials[0]) == mid.trials[0].metrics["eval/accuracy_se"]
    assert mid.error(mid.trials[2]) is None


def test_a_metric_that_falls_is_compared_the_other_way(made: Made) -> None:
    config = made.sweep(search={"metric": "eval/nll"}).for_backbone("tiny")
    study = Tracking(config).start_study(config)
    for i, nll in enumerate([2.0, float("nan"), 1.0, 3.0]):
        study.start_trial(str(i), made.trials()[i])
        study.log_points(str(i), [{"step": 1, "time": 1.0, "eval/nll": nll}])
        study.end_trial(str(i), "FINISHED")
    (found,) = studies([config.folder])
    assert found.mode == "min"
    assert [t.metrics["eval/nll"] for t in found.compared()] == [1.0, 2.0, 3.0]


def test_trials_of_the_confirm_stage_stand_apart(made: Made) -> None:
    config = made.sweep().for_backbone("tiny")
    fresh = [t.model_copy(update={"seed": s, "role": "confirm"}) for t in made.trials()[:2] for s in (1, 2)]
    made.track(config, made.trials() + fresh)
    (study,) = studies([config.folder])
    assert len(study.compared()) == 4
    assert {label: [t.seed for t in trials] for label, trials in study.confirmed().items()} == {
        "nll": [1, 2],
        "-p": [1, 2],
    }


def test_curves_and_scores_of_a_trial(sweep: SweepConfig) -> None:
    mid, _ = studies([sweep.folder])
    steps, values = history(mid, mid.trials[0], "train/loss")
    assert steps.tolist() == list(range(1, 21))
    assert values.tolist() == [2 / step for step in range(1, 21)]
    assert [part.size for part in history(mid, mid.trials[0], "eval/none")] == [0, 0]
    found = scores(mid, mid.trials[0])["generation"]
    assert found.problems == list(range(40))
    assert found.values.shape == (40, 2)
    assert found.values.mean() == pytest.approx(mid.value(mid.trials[0]))
    assert scores(mid, mid.trials[3]) == {}


def test_a_table_of_all_trials(sweep: SweepConfig) -> None:
    table = raysft.frame(sweep.folder)
    assert len(table) == 11
    first = table.iloc[0]
    expected = {"sweep": "made", "backbone": "mid", "label": "nll", "objective": "power", "exponent": 0.0, "seed": 0}
    assert first[list(expected)].to_dict() == expected
    assert np.isnan(first["threshold"])
    assert table["threshold"].dropna().tolist() == [0.2, 0.2]
    assert table.dtypes[["exponent", "threshold", "quantile", "capability", "eval/accuracy"]].eq("float64").all()
    assert table.groupby("backbone")["eval/accuracy"].count().to_dict() == {"mid": 3, "weak": 5}


@given(data=st.data())
def test_objectives_survive_being_parameters(data: st.DataObject) -> None:
    """Of every family, with any value of what is a number and any interval."""
    low, high = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    interval = data.draw(st.sampled_from([{}, {"threshold": low, "keep": "below"}, {"threshold": low, "upper": high}]))
    number = data.draw(st.floats(0.51, 0.99))
    for family in known().values():
        own = {name: number for name, field in family.model_fields.items() if field.annotation is float}
        objective = family.model_validate(own | interval)
        trial = TrialConfig(objective=objective, learning_rate=1e-3, seed=0)
        written = {key: str(value) if value is not None else "none" for key, value in _params("b", trial).items()}
        assert _objective(written) == objective


# --- targets ----------------------------------------------------------------------------------------------------------


def test_file_folder_and_name_lead_to_the_same(
    sweep: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysft.sweepfile import dump

    (tmp_path / "made.yaml").write_text(dump(sweep))
    monkeypatch.chdir(sweep.output.parent)
    expected = [s.run_id for s in studies([sweep.folder])]
    assert [s.run_id for s in studies([tmp_path / "made.yaml"])] == expected
    assert [s.run_id for s in studies(["made"])] == expected, "in ./runs"
    assert [s.run_id for s in studies(["made", "runs/made"])] == expected, "each once"
    monkeypatch.chdir("/")
    assert [s.run_id for s in studies(["made"], tracking_uri(sweep))] == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(sweep))
    assert [s.run_id for s in studies(["made"])] == expected


def test_of_several_studies_of_a_backbone_the_newest_or_the_folders(sweep: SweepConfig, made: Made) -> None:
    shutil.rmtree(sweep.folder / "weak")
    made.track(sweep.for_backbone("weak"), made.trials())
    (weak,) = [s for s in studies(["made"], tracking_uri(sweep)) if s.backbone == "weak"]
    assert (len(weak.trials), weak.earlier) == (4, 1)
    (weak,) = [s for s in studies([sweep.folder]) if s.backbone == "weak"]
    assert (len(weak.trials), weak.earlier) == (4, 0), "the folder knows which is its own"


def test_runs_of_others_in_the_experiment_are_left_alone(sweep: SweepConfig) -> None:
    experiment = client(sweep).get_experiment_by_name("made").experiment_id
    client(sweep).create_run(experiment, run_name="another tool's")
    client(sweep).create_run(experiment, tags={"mlflow.parentRunId": studies([sweep.folder])[0].run_id})
    assert [len(s.trials) for s in studies([sweep.folder])] == [6, 5]


def test_a_thousand_trials_are_asked_for_at_once(sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One search for all runs, and no request for any of them: counted on the real client."""
    asked: list[str] = []
    for name in ("search_runs", "get_run", "get_metric_history", "download_artifacts"):
        real = getattr(MlflowClient, name)

        def counted(self: MlflowClient, *args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            asked.append(name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, counted)
    studies([sweep.folder])
    files = ["download_artifacts"] * 4 + ["get_run"] * 4  # config and probe of two studies
    assert sorted(asked) == [*files, "search_runs"]


# --- what is not there or not understood ------------------------------------------------------------------------------


def test_a_missing_experiment_is_named_by_the_nearest(sweep: SweepConfig) -> None:
    error = refusal("maed", tracking_uri=tracking_uri(sweep))
    assert "'maed'" in error.place
    assert (error.reason, error.fix) == ("does not exist.", "Did you mean 'made'?")


def test_an_experiment_without_studies_is_refused(sweep: SweepConfig) -> None:
    client(sweep).create_experiment("notes")
    assert refusal("notes", tracking_uri=tracking_uri(sweep)).reason == "holds no sweep of raysft."
    client(sweep).delete_experiment(client(sweep).get_experiment_by_name("notes").experiment_id)
    assert refusal("notes", tracking_uri=tracking_uri(sweep)).reason == "was deleted."


def test_folders_that_are_no_sweeps_are_refused(sweep: SweepConfig, tmp_path: Path) -> None:
    assert f"Name one of {sweep.folder.resolve()}" in refusal(sweep.output).fix
    assert f"Did you mean '{sweep.folder.resolve()}'?" in refusal(sweep.folder / "weak" / "trials").fix
    (tmp_path / "empty").mkdir()
    assert "runs/NAME" in refusal(tmp_path / "empty").fix


def test_reading_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.db").touch()
    sqlite3.connect(tmp_path / "tables.db").execute("create table t (x)")
    before = sorted(tmp_path.rglob("*"))
    contents = {path: path.read_bytes() for path in tmp_path.glob("*.db")}
    assert refusal("made").reason == "does not exist."
    for name in ("absent.db", "other.db", "tables.db"):
        assert refusal("made", tracking_uri=f"sqlite:///{tmp_path / name}").reason == "holds no runs."
    (tmp_path / "runs" / "mlflow.db").unlink()
    assert refusal("made").reason == "holds no runs."
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path.name != "mlflow.db"]
    assert {path: path.read_bytes() for path in tmp_path.glob("*.db")} == contents


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://me:pw@127.0.0.1:9/db", "nosuch+db://x"])
def test_a_store_that_does_not_answer_is_said(uri: str) -> None:
    error = refusal("made", tracking_uri=uri)
    assert error.reason.startswith("cannot be read: ")
    assert "pw" not in str(error)


def test_what_is_no_database_of_this_mlflow_is_said(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database at all, but a text of some length")
    assert "cannot be read" in refusal("made", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}").reason


def test_settings_of_another_version_cost_the_settings_alone(sweep: SweepConfig) -> None:
    before = studies([sweep.folder])[1]
    text = "name: made\nsearch: {metric: eval/nll, of_the_future: 1}\n"
    client(sweep).log_text(before.run_id, text, "config.yaml")
    client(sweep).log_text(before.run_id, '{"mean": 1}', "probe.json")
    study = studies([sweep.folder])[1]
    assert (study.config, study.capability, study.metric, study.mode) == (None, None, "eval/nll", "min")
    assert len(study.notes) == 2
    assert len(study.compared()) == len(study.trials)
    client(sweep).log_text(before.run_id, ": not\n- yaml [", "config.yaml")
    assert studies([sweep.folder])[1].metric == "eval/accuracy"


def test_an_objective_of_another_version_is_kept_by_its_name(sweep: SweepConfig) -> None:
    run = studies([sweep.folder])[1]
    made_elsewhere = client(sweep).create_run(
        client(sweep).get_run(run.run_id).info.experiment_id,
        tags={"mlflow.parentRunId": run.run_id, "raysft.trial_id": "9999"},
        run_name="quantum 3",
    )
    client(sweep).log_param(made_elsewhere.info.run_id, "objective", "quantum")
    trial = studies([sweep.folder])[1].trials[-1]
    assert (trial.label, trial.objective, trial.metrics) == ("quantum 3", None, {})


def test_importing_raysft_stays_light() -> None:
    code = "import sys, raysft; raysft.__version__; print({'mlflow', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'fame'"):
        _ = raysft.fame
