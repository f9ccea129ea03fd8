"""What the benchmark of training steps trains: a backbone, one global batch of samples, and the sweep that holds both.

Without a backbone and data of one's own these are random weights of SmolLM2-135M's shape, and synthetic samples whose
lengths are spread as those of GSM8K's training set are under that model's tokenizer and chat template.
"""

import json
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raysft.backbone import load_tokenizer
from raysft.config import BackboneConfig, DataConfig, FileSource, SweepConfig
from raysft.data.sources import Example
from raysft.data.tokenized import TokenizedData, prepare

# Tokens of a sample of GSM8K, measured: the lognormal distribution of this mean and this 99th percentile.
MEAN, P99 = 216.0, 425.0
SHORTEST = 32
SUPERVISED = 0.58
Z99 = NormalDist().inv_cdf(0.99)
SIGMA = Z99 - math.sqrt(Z99**2 - 2 * math.log(P99 / MEAN))  # solves mean = exp(mu + s^2/2), p99 = exp(mu + Z99 s)
MU = math.log(MEAN) - SIGMA**2 / 2


class Shape(NamedTuple):
    """Of a Llama; the defaults are SmolLM2-135M's."""

    hidden: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    intermediate: int = 1536
    vocabulary: int = 49152


def make_backbone(folder: Path, shape: Shape, longest: int) -> Path:
    """Random weights in bf16 (which fp32 holds exactly: all start alike) and a tokenizer of the words w0, w1, ..."""
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i + 2 for i in range(shape.vocabulary - 2)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def lengths(count: int, longest: int) -> list[int]:
    """Of so many samples: the distribution's values at even strides, so that few samples have its mean as well."""
    normal = NormalDist(MU, SIGMA)
    drawn = [round(math.exp(normal.inv_cdf((i + 0.5) / count))) for i in range(count)]
    return [min(max(length, SHORTEST), longest) for length in drawn]


def synthetic_rows(count: int, longest: int, vocabulary: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and responses of random words; the end token is the response's last."""
    rng = random.Random(seed)

    def words(many: int) -> str:
        return " ".join(f"w{rng.randrange(vocabulary - 2)}" for _ in range(many))

    rows = []
    for length in lengths(count, longest):
        response = round(SUPERVISED * length)
        rows.append({"prompt": words(length - response), "response": words(response - 1)})
    rng.shuffle(rows)
    return rows


def typical(data: TokenizedData, count: int, seed: int = 0) -> list[Example]:
    """So many of the samples, at even strides of their lengths, in a shuffled order."""
    count = min(count, len(data))
    by_length = sorted(range(len(data)), key=lambda i: (data.lengths[i], i))
    chosen = [by_length[int((i + 0.5) * len(data) / count)] for i in range(count)]
    random.Random(seed).shuffle(chosen)
    return [data.examples[i] for i in chosen]


def make_config(
    folder: Path,
    samples: int,
    max_length: int,
    training: dict[str, Any],
    shape: Shape,
    backbone: str | None = None,
    data: dict[str, Any] | None = None,
) -> SweepConfig:
    """A sweep over one backbone whose training data are one global batch of `samples`.

    training: of the sweep file. backbone and data (a section of the sweep file) come together, or both are made.
    """
    file = folder / "samples.jsonl"
    if backbone is None or data is None:
        backbone = str(make_backbone(folder / "backbone", shape, longest=max_length))
        _write(file, synthetic_rows(samples, max_length, shape.vocabulary))
        section: dict[str, Any] = {"template": "plain"}
    else:
        wanted = DataConfig.model_validate(data | {"max_length": max_length})
        whole = prepare(wanted.train, wanted, load_tokenizer(BackboneConfig(name="b", path=backbone)), folder / "cache")
        _write(file, [{"messages": example.messages} for example in typical(whole, samples)])
        section = {"template": wanted.template, "messages": "messages"}
    source = FileSource(path=file).model_dump(mode="json")
    return SweepConfig.model_validate(
        {
            "name": "bench-train",
            "output": str(folder / "runs"),
            "backbones": [{"name": "backbone", "path": backbone}],
            "data": section | {"train": source, "heldout": source, "max_length": max_length},
            "training": training | {"global_batch_size": samples},
            "search": {"metric": "eval/nll"},
        }
    )


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
