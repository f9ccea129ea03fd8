"""Names and sizes of weights against transformers' own models, and totals against what was published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.architecture import FAMILIES, Architecture, known_rows, of_backbone, of_config
from raysft.config import BackboneConfig, HubSource, builtin_tasks
from raysft.sweepfile import load, load_tasks

SWEEPS = Path(__file__).parents[1] / "sweeps"
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama with a head_dim of its own": SMALL | {"model_type": "llama", "head_dim": 24},
    "llama with biases": SMALL | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL | {"head_dim": 12},
    "qwen3 with biases": SMALL | {"model_type": "qwen3", "attention_bias": True},
    "smollm3": SMALL,
    "gemma3_text": SMALL | {"head_dim": 16},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt2 with a width of its own": {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2,
                                     "n_inner": 20, "n_positions": 7},
}  # fmt: skip


def config_of(name: str, **changes: Any) -> Any:
    values = {"model_type": name} | SHAPES[name] | changes
    return AutoConfig.for_model(values.pop("model_type"), **values)


def weights(config: Any) -> dict[str, list[int]]:
    """Of transformers' model, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: list(weight.shape) for name, weight in model.named_parameters()}


def test_every_family_is_compared() -> None:
    assert {values.get("model_type", name) for name, values in SHAPES.items()} == set(FAMILIES)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    """Read back from the config.json that transformers writes."""
    config = config_of(name, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    found = of_backbone(BackboneConfig(name="m", path=str(tmp_path)))
    assert found is not None
    expected = weights(config)
    assert found.shapes == expected
    assert found.parameters == sum(torch.Size(shape).numel() for shape in expected.values())
    assert ("lm_head.weight" in expected) != tied


@pytest.mark.parametrize("name", SHAPES)
def test_whether_the_output_is_tied_is_known_where_the_file_does_not_say(name: str) -> None:
    config = config_of(name)
    values = config.to_dict()
    values.pop("tie_word_embeddings", None)
    found = of_config(values)
    assert found is not None
    assert found.shapes == weights(config)


PUBLISHED = {
    "Qwen/Qwen2.5-Math-1.5B": 1.54, "Qwen/Qwen2.5-1.5B": 1.54, "Qwen/Qwen2.5-7B": 7.62, "Qwen/Qwen2.5-Math-7B": 7.62,
    "Qwen/Qwen2.5-Coder-7B": 7.62, "meta-llama/Llama-3.1-8B": 8.03, "meta-llama/Llama-3.2-3B": 3.21,
    "meta-llama/Llama-3.2-1B": 1.24, "deepseek-ai/deepseek-math-7b-base": 6.91, "HuggingFaceTB/SmolLM2-135M": 0.135,
    "HuggingFaceTB/SmolLM3-3B": 3.08, "Qwen/Qwen3-1.7B": 1.72, "Qwen/Qwen3-4B": 4.02, "Qwen/Qwen3-8B": 8.19,
    "google/gemma-3-1b-pt": 1.00,
}  # fmt: skip


def known(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Architecture:
    """As if the hub's cache were empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = of_backbone(BackboneConfig(name="m", path=path))
    assert found is not None
    return found


@pytest.mark.parametrize("path", PUBLISHED)
def test_known_backbones_are_as_large_as_published(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Billions of parameters, in as many digits as their model cards have; transformers counts the same."""
    found = known(path, monkeypatch, tmp_path)
    assert found.parameters / 1e9 == pytest.approx(PUBLISHED[path], abs=0.0051 if PUBLISHED[path] > 1 else 0.0006)


@pytest.mark.parametrize("name", ["math", "medical", "figlet", "gsm8k"])
def test_backbones_and_data_of_the_shipped_sweeps_are_known(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load(SWEEPS / f"{name}.yaml")
    for backbone in config.backbones:
        known(backbone.path, monkeypatch, tmp_path)
    sources = [config.data.train, *(task.source for task in config.evaluation.tasks.values())]
    assert [s for s in sources if s.kind == "hub" and known_rows(s) is None] == []


def test_the_problems_of_every_built_in_task_are_counted() -> None:
    tasks = load_tasks(builtin_tasks())
    assert [name for name, task in tasks.items() if task.source.kind == "hub" and not known_rows(task.source)] == []
    assert known_rows(tasks["gsm8k"].source) == 1319


def test_another_split_of_a_known_data_set_is_not_known() -> None:
    assert known_rows(HubSource(path="openai/gsm8k", subset="main", split="train")) == 7473
    assert known_rows(HubSource(path="openai/gsm8k", subset="socratic", split="train")) is None
    assert known_rows(HubSource(path="openai/gsm8k", subset="main", split="valid")) is None


def test_what_lies_in_the_hubs_cache_goes_before_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen2.5-1.5B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    config_of("qwen2").save_pretrained(snapshot)
    found = of_backbone(BackboneConfig(name="m", path="Qwen/Qwen2.5-1.5B"))
    assert found is not None
    assert found.hidden == 32


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"model_type": "mamba"}', '{"model_type": "llama"}'])
def test_what_is_not_known_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert of_backbone(BackboneConfig(name="m", path=str(tmp_path))) is None
    assert of_backbone(BackboneConfig(name="m", path="nobody/nothing")) is None
    assert of_config(json.loads('{"model_type": "gpt2", "n_embd": "wide"}')) is None
