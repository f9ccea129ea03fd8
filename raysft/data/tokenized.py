"""Tokenised samples in a cache folder that all trials and processes share."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raysft.config import DataConfig, Source, config_hash
from raysft.data.cache import ensure
from raysft.data.render import Rendered, render_all
from raysft.data.rows import content_id, describe
from raysft.data.sources import Example, load_examples, share_unread
from raysft.errors import InputError
from raysft.objectives import IGNORE_INDEX

VERSION = 1  # of the tokenisation: raise it whenever the same input gives other tokens
CHUNK = 512  # samples rendered together
QUARANTINE = "quarantine.jsonl"
LISTED = 1000  # samples that the quarantine lists, at most


class TokenizedData:
    """Tokens and labels of samples, read from a cache folder as they are needed.

    counts: samples that are bad, as they cannot be read; those read, kept and dropped_truncated; tokens and
    supervised_tokens of those kept; longest, the tokens of the longest sample read. fingerprint: differs whenever any
    token may differ.
    """

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        self.folder, self.counts, self.fingerprint = folder, counts, folder.name
        self._tokens: np.ndarray = np.load(folder / "tokens.npy", mmap_mode="r")
        self._supervised: np.ndarray = np.load(folder / "supervised.npy", mmap_mode="r")
        self._offsets: np.ndarray = np.load(folder / "offsets.npy")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 [T] and labels int64 [T]: the token where it is supervised, IGNORE_INDEX elsewhere."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        part = slice(self._offsets[i], self._offsets[i + 1])
        tokens = self._tokens[part].astype(np.int64)
        return tokens, np.where(self._supervised[part], tokens, IGNORE_INDEX)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, int64 [samples]."""
        return np.diff(self._offsets)

    @cached_property
    def supervised(self) -> np.ndarray:
        """Supervised tokens of each sample, int64 [samples]."""
        return np.add.reduceat(self._supervised, self._offsets[:-1], dtype=np.int64)

    @cached_property
    def examples(self) -> list[Example]:
        """The samples as text, in the same order."""
        with (self.folder / "examples.jsonl").open() as file:
            return [Example(**json.loads(line)) for line in file]

    def left_out(self) -> str | None:
        """In one line, what could not be read and where it is listed; None where all could be."""
        bad = self.counts.get("bad", 0)  # folders of earlier versions do not count them
        if not bad:
            return None
        with (self.folder / QUARANTINE).open() as file:
            first = json.loads(next(file))
        told = share_unread(bad, bad + self.counts["read"], [InputError(first["origin"], first["reason"])])
        return f"{told} They are left out, and listed in {self.folder / QUARANTINE}"


def prepare(
    source: Source,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    limit: int | None = None,
    skip: int = 0,
) -> TokenizedData:
    """The source tokenised, from the cache where the same was tokenised before; limit and skip as in load_examples.

    A sample longer than data.max_length would lose its response's end: it is dropped and counted. One that cannot be
    read is left out, counted and listed where data.max_bad allows it. Raises InputError for what cannot be read or
    rendered, and where more than data.max_dropped of the samples, or all, are dropped.
    """
    folder = cache / _fingerprint(source, data, tokenizer, limit, skip)
    counts = ensure(folder, partial(_write, source, data, tokenizer, limit, skip))
    _check_dropped(counts, data, source)
    return TokenizedData(folder, counts)


def split(data: DataConfig, tokenizer: PreTrainedTokenizerBase, cache: Path) -> tuple[TokenizedData, TokenizedData]:
    """Training and held-out data. Without data.heldout, a draw of the training source is held out."""
    if data.heldout is not None:
        train = prepare(data.train, data, tokenizer, cache, data.train_samples)
        return train, prepare(data.heldout, data, tokenizer, cache, data.heldout_samples)
    train = prepare(data.train, data, tokenizer, cache, data.train_samples, skip=data.heldout_samples)
    return train, prepare(data.train, data, tokenizer, cache, data.heldout_samples)


def _fingerprint(
    source: Source, data: DataConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None, skip: int
) -> str:
    """A hash of everything that the tokens depend on."""
    settings = {"prompt", "response", "messages", "system", "prompt_suffix", "template", "max_length"}
    if data.max_bad > 0:  # at 0 nothing is left out, as in folders of before there was this setting
        settings.add("max_bad")
    return config_hash(
        {
            "version": VERSION,
            "source": content_id(source),
            "data": data.model_dump(mode="json", include=settings),
            "draw": [data.seed, limit, skip] if limit is not None or skip else None,
            "tokenizer": _tokenizer_content(tokenizer),
        }
    )


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        pieces: Any = [type(tokenizer).__name__, tokenizer.get_vocab()]
    else:
        pieces = json.loads(backend.to_str())
        del pieces["padding"], pieces["truncation"]  # left behind by earlier calls
    return {"pieces": pieces, "special": tokenizer.special_tokens_map, "chat_template": tokenizer.chat_template}


def _write(
    source: Source,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    skip: int,
    folder: Path,
) -> dict[str, int]:
    """Tokenise the source into `folder`; returns the counts."""
    examples, bad = load_examples(source, data, limit, skip)
    lengths: list[int] = []
    tokens: list[np.ndarray] = []
    supervised: list[np.ndarray] = []
    longest = 0
    with (folder / "examples.jsonl").open("w") as file:
        for example, (ids, mask) in _rendered(examples, tokenizer, data.template):
            longest = max(longest, len(ids))
            if len(ids) > data.max_length:
                continue
            assert not mask[0]  # nothing predicts the first token
            file.write(json.dumps(asdict(example)) + "\n")
            lengths.append(len(ids))
            tokens.append(np.array(ids, dtype=np.int32))
            supervised.append(np.array(mask))
    counts = {"bad": len(bad), "read": len(examples), "kept": len(lengths)}
    counts |= {"dropped_truncated": len(examples) - len(lengths)}
    counts |= {"tokens": sum(lengths), "supervised_tokens": int(sum(m.sum() for m in supervised)), "longest": longest}
    _check_dropped(counts, data, source)
    if bad:
        listed = (json.dumps({"origin": error.place, "reason": error.reason}) + "\n" for error in bad[:LISTED])
        (folder / QUARANTINE).write_text("".join(listed))
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "supervised.npy", np.concatenate(supervised))
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    return counts


def _rendered(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, template: str
) -> Iterator[tuple[Example, Rendered]]:
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        yield from zip(chunk, render_all(chunk, tokenizer, template), strict=True)


def _check_dropped(counts: dict[str, int], data: DataConfig, source: Source) -> None:
    dropped, read = counts["dropped_truncated"], counts["read"]
    if counts["kept"] == 0 or dropped / read > data.max_dropped:
        raise InputError(
            describe(source),
            f"{dropped} of {read} samples are longer than data.max_length ({data.max_length} tokens) and dropped, "
            "because their response would be cut.",
            f"Raise data.max_length (the longest sample has {counts['longest']} tokens), or data.max_dropped.",
        )
