"""The shape of a backbone, from its config.json or from what is known of the hub: names and sizes of its weights.

Estimates go by it. Needs neither torch nor transformers, and asks no hub.
"""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

from raysft.config import BackboneConfig, HubSource, Source
from raysft.store import fetched
from raysft.yamltext import parse

KNOWN = Path(__file__).with_name("hub.yaml")
Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Family:
    """What a type of model has beside the sizes in its configuration.

    norms: of a layer, over the hidden size; qk_norm: queries and keys are normalised, too. tied: unless its
    configuration says otherwise. wide_norm: norms compute in fp32 to their end.
    """

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False
    wide_norm: bool = False


GEMMA_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "smollm3": Family(tied=True),
    "gemma3_text": Family(norms=GEMMA_NORMS, qk_norm=True, tied=True, wide_norm=True),
    "gpt2": Family(norms=("ln_1", "ln_2"), tied=True),
}


@dataclass(frozen=True)
class Architecture:
    """positions: the most tokens of a sequence. attention_bias, mlp_bias: of all matrices there."""

    type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    positions: int
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def family(self) -> Family:
        return FAMILIES[self.type]

    @property
    def queries(self) -> int:
        """Width of a token's queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def gated(self) -> bool:
        return self.type != "gpt2"

    @cached_property
    def shapes(self) -> Shapes:
        """Name -> shape of every weight, as transformers names them; a tied output layer is not named again."""
        return _gpt2(self) if self.type == "gpt2" else _llama_like(self)

    @cached_property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @cached_property
    def matrices(self) -> Shapes:
        """Those of the layers."""
        return {name: shape for name, shape in self.shapes.items() if len(shape) == 2 and LAYER[self.gated] in name}


LAYER = {True: ".layers.", False: ".h."}


def of_backbone(backbone: BackboneConfig) -> Architecture | None:
    """None where nothing is known of it without asking the hub, or where its type is not in FAMILIES."""
    if (folder := Path(fetched(backbone.path))).is_dir():
        return _of_file(folder / "config.json")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(backbone.path, "config.json", revision=backbone.revision)
    if isinstance(cached, str):
        return _of_file(Path(cached))
    entries = _known()["backbones"]
    return next((of_config(entry["config"]) for entry in entries if backbone.path in entry["of"]), None)


def of_config(values: dict[str, Any]) -> Architecture | None:
    """values: of a config.json. None for a type that is not in FAMILIES, and where sizes are missing."""
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        return None
    try:
        return _of_gpt2(values) if kind == "gpt2" else _of_llama_like(kind, values)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def known_rows(source: Source) -> int | None:
    """Rows of a data set on the hub, where they are known."""
    if not isinstance(source, HubSource):
        return None
    asked = source.model_dump()
    for entry in _known()["rows"]:
        if all(asked[key] == value for key, value in entry.items() if key != "rows"):
            return int(entry["rows"])
    return None


@cache
def _known() -> dict[str, Any]:
    values: dict[str, Any] = parse(KNOWN.read_text(encoding="utf-8"), KNOWN.name).values
    return values


def _of_file(path: Path) -> Architecture | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return of_config(values) if isinstance(values, dict) else None


def _of_llama_like(kind: str, values: dict[str, Any]) -> Architecture:
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    return Architecture(
        type=kind,
        hidden=hidden,
        layers=int(values["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        intermediate=int(values["intermediate_size"]),
        vocabulary=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", FAMILIES[kind].tied)),
        positions=int(values["max_position_embeddings"]),
        attention_bias=bool(values.get("attention_bias", False)),
        mlp_bias=bool(values.get("mlp_bias", False)),
    )


def _of_gpt2(values: dict[str, Any]) -> Architecture:
    hidden, heads = int(values["n_embd"]), int(values["n_head"])
    return Architecture(
        type="gpt2",
        hidden=hidden,
        layers=int(values["n_layer"]),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=int(values.get("n_inner") or 4 * hidden),
        vocabulary=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", True)),
        positions=int(values["n_positions"]),
        attention_bias=True,
        mlp_bias=True,
    )


def _llama_like(a: Architecture) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": [a.vocabulary, a.hidden]}
    qkv_bias = a.attention_bias or a.family.qkv_bias
    for layer in range(a.layers):
        inside = f"model.layers.{layer}."
        for name, outputs, inputs, bias in (
            ("self_attn.q_proj", a.queries, a.hidden, qkv_bias),
            ("self_attn.k_proj", a.keys, a.hidden, qkv_bias),
            ("self_attn.v_proj", a.keys, a.hidden, qkv_bias),
            ("self_attn.o_proj", a.hidden, a.queries, a.attention_bias),
            ("mlp.gate_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.up_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.down_proj", a.hidden, a.intermediate, a.mlp_bias),
        ):
            shapes[f"{inside}{name}.weight"] = [outputs, inputs]
            if bias:
                shapes[f"{inside}{name}.bias"] = [outputs]
        shapes |= {f"{inside}{name}.weight": [a.hidden] for name in a.family.norms}
        if a.family.qk_norm:
            shapes |= {f"{inside}self_attn.{name}_norm.weight": [a.head_dim] for name in "qk"}
    shapes["model.norm.weight"] = [a.hidden]
    return shapes if a.tied else shapes | {"lm_head.weight": [a.vocabulary, a.hidden]}


def _gpt2(a: Architecture) -> Shapes:
    """Its matrices are [inputs, outputs]."""
    shapes = {"transformer.wte.weight": [a.vocabulary, a.hidden], "transformer.wpe.weight": [a.positions, a.hidden]}
    for layer in range(a.layers):
        inside = f"transformer.h.{layer}."
        for name, inputs, outputs in (
            ("attn.c_attn", a.hidden, 3 * a.hidden),
            ("attn.c_proj", a.hidden, a.hidden),
            ("mlp.c_fc", a.hidden, a.intermediate),
            ("mlp.c_proj", a.intermediate, a.hidden),
        ):
            shapes |= {f"{inside}{name}.weight": [inputs, outputs], f"{inside}{name}.bias": [outputs]}
        for name in a.family.norms:
            shapes |= {f"{inside}{name}.weight": [a.hidden], f"{inside}{name}.bias": [a.hidden]}
    shapes |= {"transformer.ln_f.weight": [a.hidden], "transformer.ln_f.bias": [a.hidden]}
    return shapes if a.tied else shapes | {"lm_head.weight": [a.vocabulary, a.hidden]}
