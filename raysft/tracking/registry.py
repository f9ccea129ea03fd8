"""A trained model in MLflow's registry: the files as a logged model of its run, and a version of a registered model."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException

from raysft.tracking.runs import Runs

TASK, PIPELINE = "text-generation", "TextGenerationPipeline"
WEIGHTS, TOKENIZER = "model", "components/tokenizer"  # where mlflow.transformers looks for them
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
)


def register(runs: Runs, run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> None:
    """folder: of Hugging Face's format. A run has one version under a name, however often this is repeated.

    mlflow.transformers.load_model("models:/NAME/VERSION") loads it.
    """
    client = runs.client
    if client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        return
    model = _logged(runs, run_id, folder, name, tags)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(name, model.artifact_location, run_id, dict(tags), model_id=model.model_id)


def _logged(runs: Runs, run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> LoggedModel:
    """The run's logged model, its files uploaded."""
    client = runs.client
    of_run = client.search_logged_models([runs.experiment_id], f"source_run_id = '{run_id}'")
    found = next((model for model in of_run if model.name == name), None)
    if found is not None and found.status == LoggedModelStatus.READY:
        return found
    model = found or client.create_logged_model(runs.experiment_id, name, run_id, dict(tags), model_type=TASK)
    client.log_model_artifacts(model.model_id, str(folder), WEIGHTS)
    with tempfile.TemporaryDirectory() as beside:
        _describe(Path(beside), folder, model)
        client.log_model_artifacts(model.model_id, beside)
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _describe(beside: Path, folder: Path, model: LoggedModel) -> None:
    """What mlflow.transformers reads beside the weights; its own way here would copy them first."""
    from mlflow.models import Model

    tokenizer = beside / TOKENIZER
    tokenizer.mkdir(parents=True)
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            shutil.copy(file, tokenizer)
    described = Model(run_id=model.source_run_id, model_id=model.model_id)
    described.add_flavor(
        "transformers",
        task=TASK,
        instance_type=PIPELINE,
        pipeline_model_type=_read(folder / "config.json")["architectures"][0],
        source_model_name=model.name,
        model_binary=WEIGHTS,
        components=["tokenizer"],
        tokenizer_type=_read(folder / "tokenizer_config.json").get("tokenizer_class", "PreTrainedTokenizerFast"),
        transformers_version=version("transformers"),
        torch_dtype=None,
        code=None,
    )
    described.save(str(beside / "MLmodel"))
    needed = [f"{library}=={version(library)}" for library in ("mlflow", "torch", "transformers")]
    (beside / "requirements.txt").write_text("\n".join(needed) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
