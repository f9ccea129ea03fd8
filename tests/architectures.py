"""Tiny models of every family beside their architecture, and studies of the shipped sweeps beside theirs."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from raysft.architecture import Architecture, of_backbone, of_config
from raysft.config import SweepConfig
from raysft.sweepfile import load

SWEEPS = Path(__file__).parents[1] / "sweeps"
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": None, "head_dim": 16,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {
    "vocab_size": 96, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512, "bos_token_id": None,
    "eos_token_id": None, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
MODELS = {**dict.fromkeys(("llama", "qwen2", "qwen3", "smollm3", "gemma3_text"), SMALL), "gpt2": GPT2}


def made(name: str, **changes: Any) -> tuple[PreTrainedModel, Architecture]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(MODELS[name] | changes))
    architecture = of_config(config.to_dict())
    assert architecture is not None
    return AutoModelForCausalLM.from_config(config), architecture


def study_of(name: str, backbone: str, *sets: str) -> tuple[SweepConfig, Architecture]:
    study = load(SWEEPS / f"{name}.yaml", list(sets)).for_backbone(backbone)
    architecture = of_backbone(study.backbone)
    assert architecture is not None
    return study, architecture
