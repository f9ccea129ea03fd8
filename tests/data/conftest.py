"""Small real tokenizers: byte-level BPE, trained here, with the special tokens of the templates."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raysft.config import DataConfig, FileSource
from raysft.data.sources import Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["What is two plus two? It is four.", "You are a helpful assistant.", "user system assistant User: Assistant:"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def build_tokenizer(
    chat_template: str | None = CHATML,
    special: list[str] = SPECIAL + LLAMA3,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    vocab_size: int = 400,
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, additional_special_tokens=special
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_example(*contents: str, system: str | None = None, origin: str = "train.jsonl line 1") -> Example:
    """User and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return Example(messages, origin, 0)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Example]:
    return build_example


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes rows, or raw lines, to a file and returns the data section that reads it."""

    def write(*rows: object, name: str = "train.jsonl", **settings: object) -> DataConfig:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return DataConfig(train=FileSource(path=path), **settings)

    return write
