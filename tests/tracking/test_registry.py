"""Registering a trained model: once for a run, and so that MLflow itself loads it again."""

import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power
from raysft.tracking import Study, Tracking, tracking_uri
from raysft.tracking.runs import Runs

TRIAL = TrialConfig(objective=Power(exponent=1), learning_rate=1e-3, seed=0)
TAGS = {"objective": "-p", "capability": "0.4000", "metric": "eval/nll"}
NAME = "mine-tiny"


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "sweep",
            "output": str(tmp_path / "runs"),
            "backbones": [{"name": "tiny", "path": "models/tiny"}],
            "data": {"train": {"kind": "file", "path": "train.jsonl"}},
            "search": {"metric": "eval/nll"},
            "tracking": {"register_as": "mine", "tags": {"domain": "math"}},
        }
    )


@pytest.fixture
def study(config: SweepConfig) -> Study:
    study = Tracking(config).start_study(config)
    study.start_trial("0000", TRIAL)
    study.end_trial("0000", "FINISHED")
    return study


def versions(config: SweepConfig) -> list[tuple[str, str]]:
    """Version and run of each."""
    found = MlflowClient(tracking_uri(config)).search_model_versions(f"name = '{NAME}'")
    return sorted((str(one.version), one.run_id) for one in found)


def test_a_registered_model_is_loaded_by_mlflow(
    config: SweepConfig, study: Study, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.register("0000", tiny_backbone, TAGS)
    study.end("FINISHED")
    client = MlflowClient(tracking_uri(config))
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert version.tags == {**TAGS, "domain": "math"}
    (run_id,) = study.run_ids().values()
    assert version.run_id == run_id
    (output,) = client.get_run(run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (logged.name, str(logged.status), logged.source_run_id) == (NAME, "READY", run_id)

    import mlflow
    import mlflow.transformers
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(config))
    loaded = mlflow.transformers.load_model(f"models:/{NAME}/1", return_type="components")
    mine = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokens = torch.tensor([loaded["tokenizer"]("1+2?")["input_ids"]])
    assert tokens.shape == (1, 4)
    with torch.no_grad():
        assert torch.equal(loaded["model"](tokens).logits, mine(tokens).logits)


def test_registering_again_makes_no_second_version(config: SweepConfig, study: Study, tiny_backbone: Path) -> None:
    for _ in range(2):
        study.register("0000", tiny_backbone, TAGS)
    resumed = Tracking(config).start_study(config, resume=True)
    resumed.register("0000", tiny_backbone, TAGS)
    assert [number for number, _ in versions(config)] == ["1"]
    resumed.start_trial("0001", TRIAL)
    resumed.register("0001", tiny_backbone, TAGS)
    assert versions(config) == [("1", study.run_ids()["0000"]), ("2", study.run_ids()["0001"])]


@pytest.mark.parametrize("interrupted", ["log_outputs", "finalize_logged_model", "create_model_version"])
def test_what_was_cut_short_is_finished_once(
    config: SweepConfig, study: Study, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """The write is made, its answer is lost, and the spool tries again."""
    real, calls = getattr(MlflowClient, interrupted), []

    def lost(*arguments: object, **named: object) -> object:
        made = real(*arguments, **named)
        calls.append(interrupted)
        if len(calls) == 1:
            raise OSError("the answer was lost")
        return made

    monkeypatch.setattr(MlflowClient, interrupted, lost)
    study.register("0000", tiny_backbone, TAGS)
    assert calls == [interrupted]
    study.end("FINISHED")
    assert [number for number, _ in versions(config)] == ["1"]
    runs: Runs = study._runs
    (run_id,) = study.run_ids().values()
    assert len(runs.client.search_logged_models([runs.experiment_id])) == 1
    assert len(runs.client.get_run(run_id).outputs.model_outputs) == 1


def test_a_folder_that_is_gone_is_left_out_and_said(
    config: SweepConfig, study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.rmtree(folder)
    study.register("0000", folder, TAGS)
    study.end("FINISHED")
    assert "left out" in caplog.text
    with pytest.raises(MlflowException, match="not found"):
        MlflowClient(tracking_uri(config)).get_registered_model(NAME)
