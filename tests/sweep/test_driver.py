"""Whole sweeps on a real local Ray with DeepSpeed workers, Optuna and an MLflow database."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from rich.console import Console

from raysft.advisor import Advice, advise
from raysft.config import PAPER_BASELINES, Job, SweepConfig, TrialConfig
from raysft.errors import InputError
from raysft.inprocess import bench_here
from raysft.objectives import Power
from raysft.progress import Progress
from raysft.records import read_records
from raysft.sweep.driver import baselines, study_folder, sweep
from raysft.sweepfile import dump
from tests.conftest import fill, wait_until

Make = Callable[..., SweepConfig]
Run = Callable[..., subprocess.Popen[str]]
ONE_AT_ONCE = {"max_concurrent": 1}
CONTRACT_PARAMS = {"backbone", "objective", "exponent", "threshold", "keep", "learning_rate", "seed"}
CONTRACT_METRICS = {
    "eval/accuracy",
    "eval/nll",
    "eval/mean_probability",
    "train/loss",
    "train/tokens_per_second",
    "capability/mean_probability",
}


def quiet() -> Progress:
    return Progress(Console(file=open("/dev/null", "w")))


def runs_of(config: SweepConfig) -> tuple[list[Any], list[Any]]:
    """Parent and child runs of a sweep's experiment, read back from the store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.output.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    return [r for r in runs if r not in children], children


def steps_of(config: SweepConfig, run: Any, metric: str = "train/loss") -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.output.resolve()}/mlflow.db")
    return [m.step for m in client.get_metric_history(run.info.run_id, metric)]


def registered(config: SweepConfig) -> set[tuple[str, str]]:
    """Name and version of each model in the store's registry."""
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{config.output.resolve()}/mlflow.db").search_model_versions()
    return {(version.name, str(version.version)) for version in found}


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in logged(folder)]


@pytest.mark.slow
def test_sweep_from_file_to_answer(ray_cluster: None, make_config: Make) -> None:
    """Baselines and a searched trial; two backbones, of which one has overrides and the other a trial that fails."""
    config = make_config()
    path = config.backbones[0].path
    second = {"name": "second", "path": path, "overrides": {"training": {"steps": 4}}}
    tracking = {"register_as": "mine", "tags": {"domain": "sums"}}
    config = make_config(backbones=[{"name": "first", "path": path}, second], tracking=tracking, workers=ONE_AT_ONCE)

    def given(study: SweepConfig) -> list[TrialConfig]:
        exploding = TrialConfig(objective=Power(exponent=0.3), learning_rate=1e30, seed=0, role="train")
        return [*baselines(study), exploding] if study.backbone.name == "first" else baselines(study)

    first, other = sweep(config, quiet(), given=given)
    for result, steps, failed in ((first, 6, 1), (other, 4, 0)):
        assert [t.status for t in result.trials].count("FINISHED") == 5
        assert [t.status for t in result.trials].count("FAILED") == failed
        ran = [t.trial.objective for t in result.trials if t.trial.role == "baseline"]
        assert sorted(o.label() for o in ran) == sorted(o.label() for o in PAPER_BASELINES)
        best = max(t.metrics["eval/accuracy"] for t in result.trials if t.status == "FINISHED")
        assert result.best is not None
        assert result.best.metrics["eval/accuracy"] == best
        folder = study_folder(config.for_backbone(result.backbone))
        (kept,) = folder.glob("trials/*/model")
        assert (kept / "model.safetensors").exists()
        assert kept.parent.name == result.best.trial_id
        assert f"**{result.best.trial.objective.label()}** (this model)" in (kept / "README.md").read_text()
        known = optuna.load_study(study_name=f"tiny/{result.backbone}", storage=f"sqlite:///{folder / 'optuna.db'}")
        assert [t.user_attrs["objective"] for t in known.trials] == [t.trial.objective.label() for t in result.trials]
        assert known.best_value == best
        for trial in result.trials:
            if trial.status == "FINISHED":
                assert len(losses(folder / "trials" / trial.trial_id)) == steps

    folders = [study_folder(config.for_backbone(result.backbone)) / "groups" for result in (first, other)]
    assert [folder.exists() for folder in folders] == [True, False], "the first study's groups went on with the second"

    parents, children = runs_of(config)
    assert sorted(p.info.run_name for p in parents) == ["first", "second"]
    assert {p.info.status for p in parents} == {"FINISHED"}
    assert len(children) == 11
    for child in children:
        assert set(child.data.params) >= CONTRACT_PARAMS
        if child.info.status == "FINISHED":
            assert set(child.data.metrics) >= CONTRACT_METRICS
            steps = 6 if child.data.params["backbone"] == "first" else 4
            assert steps_of(config, child) == list(range(1, steps + 1))
        else:
            assert child.info.status == "FAILED"
            assert "at step" in child.data.tags["stop_reason"]
        assert child.data.tags["domain"] == "sums"
    assert [c.info.status for c in children].count("FAILED") == 1
    assert registered(config) == {("mine-first", "1"), ("mine-second", "1")}
    with pytest.raises(InputError, match="holds an earlier run"):
        sweep(config, quiet())

    again = sweep(config, quiet(), resume=True, given=given)
    assert not again[0].interrupted
    assert [t.status for t in again[0].trials].count("FINISHED") == 5
    assert [t.status for t in again[0].trials].count("FAILED") == 1
    assert again[1] == other, "a finished study is not run again"
    assert len(runs_of(config)[1]) == 11
    assert registered(config) == {("mine-first", "1"), ("mine-second", "1")}
    longer = config.model_copy(update={"search": config.search.model_copy(update={"trials": 9})})
    with pytest.raises(InputError, match=r"other settings: search.trials was \d+, is 9"):
        sweep(longer, quiet(), resume=True)


@pytest.mark.slow
def test_a_grid_runs_each_of_its_points_once(ray_cluster: None, make_config: Make) -> None:
    """Two at once; exponent 1 is a baseline, and a quantile becomes a probability that Optuna's file knows again."""
    space = {"exponent": [0.5, 1], "threshold": [0.25], "threshold_unit": "quantile"}
    config = make_config(space=space, search={"sampler": "grid", "trials": None}, training={"steps": 2})
    (result,) = sweep(config, quiet())
    assert {t.status for t in result.trials} == {"FINISHED"}
    searched = [t.trial for t in result.trials if t.trial.role == "search"]
    assert [(t.objective.exponent, t.quantile) for t in searched] == [(0.5, None), (0.5, 0.25), (1, 0.25)]
    assert len(result.trials) == 4 + config.searched == 7
    folder = study_folder(config.for_backbone(result.backbone))
    known = optuna.load_study(study_name=f"tiny/{result.backbone}", storage=f"sqlite:///{folder / 'optuna.db'}")
    assert [t.params for t in known.trials[4:]] == [
        {"exponent": 0.5, "thresholded": False},
        {"exponent": 0.5, "thresholded": True},
        {"exponent": 1.0, "thresholded": True},
    ]


@pytest.mark.slow
def test_a_sweep_begins_with_what_is_advised(ray_cluster: None, make_config: Make) -> None:
    """auto has its exponent before it trains; a resume goes by the advice that the study began with."""
    config = make_config(
        training={"steps": 4}, baselines=[{"type": "auto", "follow": True}], search={"trials": 2}, workers=ONE_AT_ONCE
    )
    (result,) = sweep(config, quiet())
    folder = study_folder(config.for_backbone("tiny"))
    advice = Advice.from_json((folder / "advice.json").read_text())
    assert advice == advise(result.capability), "the paper alone: the store has no other experiment"
    (auto,) = [t for t in result.trials if t.trial.objective.type == "auto"]
    assert auto.trial.objective.exponent == advice.exponent
    assert auto.status == "FINISHED"
    promising = [o for o in advice.promising() if o not in PAPER_BASELINES]
    first, _ = [t.trial.objective for t in result.trials if t.trial.role == "search"]
    assert first == promising[0]

    (parent,), children = runs_of(config)
    assert parent.data.tags["advice/objective"] == advice.choices[0].objective.label()
    assert parent.data.tags["advice/regime"] == "weak"
    (logged_auto,) = [c.data for c in children if c.data.params["objective"] == "auto"]
    assert float(logged_auto.params["exponent"]) == advice.exponent
    assert logged_auto.params["auto.follow"] == "True"
    assert "train/exponent" in logged_auto.metrics

    stored = advice.to_json().replace('"weak"', '"strong"')  # it is read again, and not made anew
    (folder / "advice.json").write_text(stored)
    (folder / "study.json").unlink()
    ended = folder / "trials" / auto.trial_id / "end.json"
    ended.unlink()
    before = losses(ended.parent)
    (again,) = sweep(config, quiet(), resume=True)
    assert [(t.trial, t.status) for t in again.trials] == [(t.trial, t.status) for t in result.trials]
    assert losses(ended.parent) == before
    assert (folder / "advice.json").read_text() == stored


def asked(config: SweepConfig, trial_id: str) -> set[int]:
    """The problems that a trial answered."""
    records = read_records(study_folder(config.for_backbone("tiny")) / "trials" / trial_id / "completions.jsonl.gz")
    return {record["problem"] for record in records}


@pytest.mark.slow
def test_a_search_is_confirmed_on_problems_that_it_never_saw(ray_cluster: None, make_config: Make) -> None:
    generation = make_config().evaluation.generation
    assert generation is not None
    config = make_config(
        evaluation={"generation": generation.model_copy(update={"problems": 12}).model_dump()},
        confirm={"seeds": 1},
        workers=ONE_AT_ONCE,
    )
    (result,) = sweep(config, quiet())
    searched = [row for row in result.trials if row.trial.role != "confirm"]
    confirmed = [row for row in result.trials if row.trial.role == "confirm"]
    assert len(searched) == 5
    assert len(confirmed) in (4, 5)
    assert {row.status for row in result.trials} == {"FINISHED"}
    assert {row.trial.seed for row in confirmed} == {1}
    assert result.best in searched
    seen, unseen = asked(config, searched[0].trial_id), asked(config, confirmed[0].trial_id)
    assert not seen & unseen
    assert len(seen | unseen) == 12
    assert all(asked(config, row.trial_id) == seen for row in searched)
    assert all(asked(config, row.trial_id) == unseen for row in confirmed)
    best = next(row for row in confirmed if row.trial.objective == result.best.trial.objective)
    assert best.metrics["eval/nll"] != result.best.metrics["eval/nll"], "the held-out samples are divided too"
    (kept,) = study_folder(config.for_backbone("tiny")).glob("trials/*/model")
    assert kept.parent.name == result.best.trial_id

    more = config.model_copy(update={"confirm": config.confirm.model_copy(update={"seeds": 2})})
    (again,) = sweep(more, quiet(), resume=True)
    assert again.trials[: len(result.trials)] == result.trials
    assert [row.trial.seed for row in again.trials[len(result.trials) :]] == [2] * len(confirmed)
    assert sweep(more, quiet(), resume=True) == [again]
    other = config.model_copy(update={"confirm": config.confirm.model_copy(update={"share": 0.3})})
    with pytest.raises(InputError, match=r"confirm\.share was 0\.5, is 0\.3"):
        sweep(other, quiet(), resume=True)


def halved(make_config: Make, steps: int, trials: int, asha: dict[str, int], **changes: Any) -> SweepConfig:
    config = make_config()
    return make_config(
        training=config.training.model_dump() | {"steps": steps, "checkpoint_every": steps},
        evaluation={"generation": None, "every": 1},
        search={"trials": trials, "metric": "eval/nll", "asha": asha},
        **changes,
    )


@pytest.mark.slow
def test_lora_trials_run_side_by_side_in_a_group(ray_cluster: None, make_config: Make, tmp_path: Path) -> None:
    """Five trials in three lanes of one group, each as it is alone in this process."""
    training = {"lora": {"rank": 2, "alpha": 4}, "steps": 4}
    config = make_config(training=training, workers={"lanes": 3, "max_concurrent": 1})
    (result,) = sweep(config, quiet())
    assert [trial.status for trial in result.trials] == ["FINISHED"] * 5
    folder = study_folder(config.for_backbone("tiny")) / "trials"
    alone = bench_here(config.for_backbone("tiny"))
    for trial in result.trials:
        alone.run(Job(trial.trial_id, trial.trial, tmp_path / trial.trial_id))
        assert losses(folder / trial.trial_id) == pytest.approx(losses(tmp_path / trial.trial_id), rel=1e-4)


@pytest.mark.slow
def test_halving_resumes_what_it_promotes_and_costs_little(ray_cluster: None, make_config: Make) -> None:
    """16 searched trials, of which a quarter goes on at each of 3 rungs: at most 2.5 full runs, no step done twice."""
    config = halved(make_config, steps=16, trials=16, asha={"grace_period": 1, "reduction_factor": 4})
    (result,) = sweep(config, quiet())
    folder = study_folder(config.for_backbone("tiny")) / "trials"
    searched = {t.trial_id: t for t in result.trials if t.trial.role == "search"}
    assert len(result.trials) == 20
    assert {t.status for t in result.trials if t.trial.role == "baseline"} == {"FINISHED"}
    steps = {t: [row["step"] for row in logged(folder / t)] for t in searched}
    trained = sum(map(len, steps.values()))
    for trial_id, trial in searched.items():
        assert steps[trial_id] == list(range(1, trial.step + 1))
        assert trial.status == ("FINISHED" if trial.step == 16 else "KILLED")
        assert trial.reason == ("" if trial.step == 16 else f"stopped early at step {trial.step}")
        assert not (folder / trial_id / "checkpoints").exists()
        if trial.step > 1:
            when = (folder / trial_id / "promoted.json").stat().st_mtime
            trained += sum(row["time"] > when for row in logged(folder / trial_id) if row["step"] <= trial.step // 4)
    reached = sorted(t.step for t in searched.values())
    assert reached.count(16) == 1
    assert 1 <= len(reached) - reached.count(1) <= 4
    assert trained <= 2.5 * 16

    _, children = runs_of(config)
    assert len(children) == 20
    for child in children:
        trial_id = child.data.tags["raysft.trial_id"]
        row = next(t for t in result.trials if t.trial_id == trial_id)
        assert child.info.status == row.status
        assert steps_of(config, child) == list(range(1, row.step + 1))
        if row.status == "KILLED":
            assert child.data.tags["stop_reason"] == row.reason

    promoted = [t for t in searched.values() if t.step > 1]
    search = config.search.model_copy(update={"asha": None, "trials": 0})
    workers = config.workers.model_copy(update={"max_concurrent": 1})
    whole = config.model_copy(update={"name": "whole", "search": search, "workers": workers})
    (undisturbed,) = sweep(whole, quiet(), given=lambda study: [t.trial for t in promoted])
    for before, after in zip(promoted, undisturbed.trials, strict=True):
        there = losses(study_folder(whole.for_backbone("tiny")) / "trials" / after.trial_id)
        assert losses(folder / before.trial_id) == there[: before.step]


def actors(name: str, pid: int | None = None) -> list[psutil.Process]:
    """Processes of the actors of a class, below this process or another."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if any(f"ray::{name}" in word for word in child.cmdline())]


@pytest.mark.slow
@pytest.mark.faults
def test_killed_worker_and_controller_resume_their_trial_bitwise(ray_cluster: None, make_config: Make) -> None:
    """SIGKILL in the middle of a trial of two workers; the same trial then runs undisturbed and must be equal.

    The workers need all cores, so that nothing may stay reserved for those of a controller that is gone.
    """
    config = make_config()
    config = make_config(
        training=config.training.model_dump() | {"steps": 120, "checkpoint_every": 10}, workers={"count": 2}
    )
    trial = TrialConfig(objective=Power(exponent=0.5), learning_rate=3e-3, seed=0, role="train")
    config = config.model_copy(update={"search": config.search.model_copy(update={"trials": 0})})
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(sweep(config, quiet(), given=lambda study: [trial, trial])))
    thread.start()
    trials = study_folder(config.for_backbone("tiny")) / "trials"
    for step, victim in (("0000003", "RayTrainWorker"), ("0000007", "TrainController")):
        wait_until(lambda: bool(list(trials.glob(f"*/checkpoints/step-{step}*"))))  # noqa: B023
        actors(victim)[0].kill()
    thread.join(timeout=300)
    (result,) = results
    assert [t.status for t in result.trials] == ["FINISHED"] * 2
    disturbed, undisturbed = (losses(trials / t.trial_id) for t in result.trials)
    assert len(disturbed) == 120
    assert disturbed == undisturbed
    alone = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 1})})
    bench_here(alone.for_backbone("tiny")).run(Job("plain", trial, config.output / "plain"))
    assert disturbed == pytest.approx(losses(config.output / "plain"), rel=1e-4)
    for child in runs_of(config)[1]:
        assert steps_of(config, child) == list(range(1, 121))


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[Run]:
    """A function that runs `raysft sweep` on a config in a process of its own.

    The file names its data and backbone as people do: relative to where they are.
    """
    started: list[subprocess.Popen[str]] = []

    def run(config: SweepConfig, *options: str) -> subprocess.Popen[str]:
        file = tmp_path / "sweep.yaml"
        root = str(config.output.parents[1])
        file.write_text(dump(config).replace(f"{root}/", f"{os.path.relpath(root, tmp_path)}/"))
        process = subprocess.Popen(
            [sys.executable, "-m", "raysft", "sweep", str(file), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("victim", "how", "slots", "slots_later"),
    [("sweep", signal.SIGTERM, 2, 1), ("sweep", signal.SIGKILL, 1, 2), ("Board", signal.SIGKILL, 1, 1)],
)
def test_interrupted_sweep_resumes_where_it_was(
    command_line: Run, make_config: Make, tmp_path: Path, victim: str, how: signal.Signals, slots: int, slots_later: int
) -> None:
    """With another number of trials at once, since where a sweep runs may change."""
    config = make_config()
    config = make_config(
        training=config.training.model_dump() | {"steps": 150, "checkpoint_every": 15},
        workers={"max_concurrent": slots},
    )
    study = config.for_backbone("tiny")
    trials = study_folder(study) / "trials"
    first = command_line(config)
    wait_until(lambda: bool(list(trials.glob("*/result.json"))) and len(list(trials.glob("*/checkpoints/step-*"))) >= 1)
    (first if victim == "sweep" else actors(victim, first.pid)[0]).send_signal(how)
    said, _ = first.communicate(timeout=120)
    assert "Traceback" not in said
    if victim == "Board":
        assert first.returncode == 1
        assert "the process that hands out the trials was lost. Go on with --resume." in said
    done_before = {p.parent.name: p.stat().st_mtime_ns for p in trials.glob("*/result.json")}
    if how == signal.SIGTERM:  # which raysft turns into Ctrl-C's SIGINT
        assert first.returncode == 1, said
        assert "--resume" in said
        parents, children = runs_of(config)
        assert {r.info.status for r in [*parents, *children]} <= {"FINISHED", "KILLED"}
    second = command_line(config, "--resume", "--set", f"workers.max_concurrent={slots_later}")
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert f"{slots_later} at once" in said
    _, children = runs_of(config)
    assert [c.info.status for c in children] == ["FINISHED"] * 5
    for child in children:
        assert steps_of(config, child) == list(range(1, 151))
    for trial_id, when in done_before.items():
        assert (trials / trial_id / "result.json").stat().st_mtime_ns == when, "a finished trial ran again"
    assert len(list(trials.iterdir())) == 5
    interrupted = [p for p in trials.iterdir() if p.name not in done_before]
    assert interrupted
    trial = TrialConfig.model_validate_json((interrupted[0] / "trial.json").read_text())
    bench = bench_here(study.model_copy(update={"output": tmp_path / "other"}))
    bench.run(Job("plain", trial, tmp_path / "plain"))
    assert losses(interrupted[0]) == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.faults
def test_a_sweep_on_a_full_disk_says_so_and_resumes(command_line: Run, make_config: Make, small_disk: Path) -> None:
    """All of it lies there: checkpoints, the ledger, MLflow's database, logs."""
    config = make_config()
    training = config.training.model_dump() | {"steps": 60, "checkpoint_every": 5}
    config = make_config(output=str(small_disk / "runs"), training=training, workers=ONE_AT_ONCE)
    first = command_line(config)
    trials = study_folder(config.for_backbone("tiny")) / "trials"
    wait_until(lambda: bool(list(trials.glob("*/checkpoints/step-*"))))
    ballast = fill(small_disk, leaving=0)
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 1
    assert "Traceback" not in said
    assert "No space left on device" in said
    assert "Free some space; what was written is whole, and a sweep goes on with --resume." in said
    ballast.unlink()
    second = command_line(config, "--resume")
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    _, children = runs_of(config)
    assert [child.info.status for child in children] == ["FINISHED"] * 5
    for child in children:
        assert steps_of(config, child) == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.faults
def test_interrupted_halving_goes_on_by_the_ledger(command_line: Run, make_config: Make, tmp_path: Path) -> None:
    """Killed when a trial has just been promoted: paused ones stay paused, promoted ones go on, none begins anew."""
    asha = {"grace_period": 8, "reduction_factor": 2}
    config = halved(make_config, steps=32, trials=6, asha=asha, workers={"count": 1, "max_concurrent": 1})
    study = config.for_backbone("tiny")
    trials = study_folder(study) / "trials"
    first = command_line(config)
    wait_until(lambda: bool(list(trials.glob("*/promoted.json"))))
    first.kill()
    first.communicate(timeout=120)
    time.sleep(5)  # its workers notice that their driver is gone
    known = {p.parent.name: p.stat().st_mtime_ns for p in trials.glob("*/metrics.jsonl")}
    promoted = {p.parent.name for p in trials.glob("*/promoted.json")}
    assert len(known) < 10, "the kill came too late to show anything"
    second = command_line(config, "--resume")
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    _, children = runs_of(config)
    assert len(children) == len(list(trials.iterdir())) == 10
    reached = {}
    for child in children:
        trial_id = child.data.tags["raysft.trial_id"]
        (end,) = (json.loads(path.read_text()) for path in (trials / trial_id).glob("end.json"))
        reached[trial_id] = end["step"]
        assert child.info.status == end["status"] == ("FINISHED" if end["step"] == 32 else "KILLED")
        assert steps_of(config, child) == [row["step"] for row in logged(trials / trial_id)]
        assert steps_of(config, child) == list(range(1, end["step"] + 1))
    searched = [reached[f"{number:04d}"] for number in range(4, 10)]
    assert [reached[f"{number:04d}"] for number in range(4)] == [32] * 4
    assert set(searched) <= {8, 16, 32}
    assert searched.count(32) == 1
    assert 1 <= len(searched) - searched.count(8) <= 3
    for trial_id in promoted:
        assert reached[trial_id] > 8
    for trial_id, when in known.items():
        if reached[trial_id] == 8:
            assert (trials / trial_id / "metrics.jsonl").stat().st_mtime_ns == when, "a paused trial ran again"
    best = next(trial_id for trial_id, step in reached.items() if step == 32 and trial_id >= "0004")
    trial = TrialConfig.model_validate_json((trials / best / "trial.json").read_text())
    bench = bench_here(study.model_copy(update={"output": tmp_path / "other"}))
    bench.run(Job("plain", trial, tmp_path / "plain"))
    assert losses(trials / best) == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


@pytest.mark.slow
def test_fresh_group_for_each_trial(ray_cluster: None, make_config: Make) -> None:
    config = make_config(workers={"count": 1, "reuse": False, "max_concurrent": 1}, search={"trials": 0})
    trials = [TrialConfig(objective=Power(exponent=a), learning_rate=3e-3, seed=0, role="train") for a in (0.0, 1.0)]
    (result,) = sweep(config, quiet(), given=lambda study: trials)
    assert [t.status for t in result.trials] == ["FINISHED"] * 2
    groups = study_folder(config.for_backbone("tiny")) / "groups"
    started = sorted(groups.iterdir())
    assert len(started) >= 2
    assert sweep(config, quiet(), resume=True, given=lambda study: trials) == [result]
    assert sorted(groups.iterdir()) == started, "a finished study starts no group"


def test_a_sweeps_own_process_loads_no_models() -> None:
    """Seconds of every start; the groups do it."""
    code = "import sys, raysft.sweep.driver; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_baselines_are_the_papers_and_the_files_own(make_config: Make) -> None:
    config = make_config(baselines=[{"exponent": 0.5}, {"exponent": 1}])
    found = [t.objective.label() for t in baselines(config)]
    assert found == ["nll", "-p", "-p^10", "nll, p >= 0.2", "exponent 0.5"]
