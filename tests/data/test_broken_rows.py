"""Broken JSONL files through `raysft check` and `split`: only InputError, and just the good rows when bad may go."""

import json
import math
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raysft.check import Plan, check
from raysft.config import SweepConfig
from raysft.data.sources import draw
from raysft.data.tokenized import TokenizedData, split
from raysft.errors import InputError

HELD = 4
TEXTS = ["What is 3 + 4?", "Café au lait: how many €?", "日本 has how many letters?", "Tabs\tand\nlines", 'Quotes "x"']
Messages = list[dict[str, str]]
Line = Callable[[bytes, Random], bytes]


def sample(number: int, chat: bool) -> dict[str, Any]:
    prompt, response = f"{number}. {TEXTS[number % len(TEXTS)]}", f"It is {number}."
    if not chat:
        return {"id": number, "prompt": prompt, "response": response}
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"id": number, "messages": turns}


def dumped(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


# --- what happens to files ------------------------------------------------------------------------------------------


def cut(line: bytes, random: Random) -> bytes:
    return line[: random.randrange(len(line))]


def overwritten(line: bytes, random: Random) -> bytes:
    changed = bytearray(line)
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(line))] = random.randrange(256)
    return bytes(changed)


def with_nul(line: bytes, random: Random) -> bytes:
    place = random.randrange(len(line) + 1)
    return line[:place] + b"\0" + line[place:]


def elsewhere_encoded(line: bytes, random: Random) -> bytes:
    return line.decode().encode(random.choice(["latin-1", "utf-16", "utf-16-le", "utf-32"]), "replace")


def nested(line: bytes, random: Random) -> bytes:
    """Far from the depth that Python's own stack ends at, which depends on who calls."""
    depth = random.choice([3, 50, 100_000])
    return random.choice([b"[" * depth, b'{"prompt": ' + b"[" * depth + b"]" * depth + b', "response": "r"}'])


def with_value(line: bytes, random: Random) -> bytes:
    """One value of the row, at whatever depth, replaced or gone."""
    row = json.loads(line)
    inner = random.choice([row, *row.get("messages", [])])
    key = random.choice(list(inner))
    if random.random() < 0.3:
        del inner[key]
        return dumped(row)
    inner[key] = "HERE"
    values = [
        "null",
        "true",
        "[]",
        "{}",
        '""',
        '" \\n"',
        "[1, 2]",
        "7",
        "-0.5",
        "1e999",
        "NaN",
        '"\\ud800"',
        '"\\u0000"',
    ]
    values += ["1" * 400, "1" * 5000, '["' + "x" * 2000 + '"]', '"' + "x" * 2000 + '"', '"\\n\\n"', '"user"']
    return dumped(row).replace(b'"HERE"', random.choice(values).encode())


def with_key(line: bytes, random: Random) -> bytes:
    """The same key twice, or another name for it."""
    key = random.choice(["prompt", "response", "messages", "role", "content"])
    second = random.choice([f'"{key}": "second", ', f'"{key}": null, ', '"\\ud800": 1, ', '"": 1, '])
    if random.random() < 0.5:
        return line.replace(b"{", b"{" + second.encode(), 1)
    return line.replace(f'"{key}"'.encode(), random.choice([b'"promt"', b'"\\udfff"']), 1)


def of_another_kind(line: bytes, random: Random) -> bytes:
    return random.choice([b"[" + line + b"]", b'"text"', b"7", b"null", b"{}", b"[]", b"plain text", line * 2, b"//"])


def blank(line: bytes, random: Random) -> bytes:
    return random.choice([b"", b"  \t", b"\r", "\u3000\u2028".encode(), b"\n\n"])


def still_good(line: bytes, random: Random) -> bytes:
    return random.choice([line + b"\r", b"  " + line + b" ", b"\n" + line, line.replace(b": ", b" :\t")])


LINES: list[Line] = [
    cut, overwritten, with_nul, elsewhere_encoded, nested, with_value, with_value, with_value, with_key,
    of_another_kind, blank, still_good, lambda line, random: BOM_UTF8 + line,
]  # fmt: skip
FILES: list[Line] = [
    lambda content, random: BOM_UTF8 + content,
    lambda content, random: content.replace(b"\n", b"\r\n"),
    lambda content, random: content.decode("utf-8", "ignore").encode("utf-16"),
    lambda content, random: content.decode("utf-8", "ignore").encode("latin-1", "replace"),
    lambda content, random: content[: random.randrange(len(content) + 1)],
    lambda content, random: content.rstrip(b"\n"),
]


@st.composite
def files(draw: st.DrawFn) -> tuple[bool, bytes, list[int]]:
    """Whether its rows are chats, a file's content, and the ids of the rows that nothing happened to."""
    chat, random = draw(st.booleans()), draw(st.randoms(use_true_random=False))
    lines = [dumped(sample(number, chat)) for number in range(draw(st.integers(HELD, 14)))]
    spoiled = draw(st.sets(st.integers(0, len(lines) - 1), max_size=len(lines)))
    for number in sorted(spoiled):
        lines[number] = draw(st.sampled_from(LINES))(lines[number], random)
    content = b"".join(line + b"\n" for line in lines)
    if draw(st.integers(0, 5)) > 0:
        return chat, content, sorted(set(range(len(lines))) - spoiled)
    return chat, draw(st.sampled_from(FILES))(content, random), []


# --- what is good of a file, read without raysft --------------------------------------------------------------------


def text_of(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if str(value).encode(errors="ignore").decode() == str(value) else None


def messages_of(line: bytes, chat: bool) -> Messages | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    pair = [{"role": role, "content": row.get(key)} for role, key in (("user", "prompt"), ("assistant", "response"))]
    turns = row.get("messages") if chat else pair
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        return None
    read = [{"role": turn.get("role"), "content": text_of(turn.get("content"))} for turn in turns]
    for turn in read:
        if turn["role"] not in ("system", "user", "assistant") or turn["content"] is None:
            return None
        if turn["role"] == "assistant" and turn["content"].strip() == "":
            return None
    return read if read[-1]["role"] == "assistant" else None


def rows_of(content: bytes, chat: bool) -> list[tuple[int, Messages | None]]:
    """Line number and messages, None where it is bad, of each line that is not blank."""
    lines = content.removeprefix(BOM_UTF8).split(b"\n")
    return [(n, messages_of(line, chat)) for n, line in enumerate(lines, 1) if line.decode(errors="replace").strip()]


# --- through the doors that users come in by ------------------------------------------------------------------------


def sweep_of(path: Path, backbone: Path, chat: bool, max_bad: float) -> SweepConfig:
    data = {"train": {"kind": "file", "path": str(path)}, "heldout_samples": HELD, "max_length": 10**6}
    data |= {"messages": "messages" if chat else None, "max_bad": max_bad, "template": "qwen"}
    values = {"name": "broken", "output": str(path.parent / "runs"), "search": {"metric": "eval/nll"}, "data": data}
    return SweepConfig.model_validate(values | {"backbones": [{"name": "tiny", "path": str(backbone)}]})


def both(config: SweepConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[Plan, list[TokenizedData]] | InputError:
    """What check and split say; where they refuse, they must say the same."""
    found: list[Any] = []
    for call in (lambda: check(config), lambda: list(split(config.data, tokenizer, config.output / "cache"))):
        try:
            found.append(call())
        except InputError as error:
            found.append(error)
    if isinstance(found[0], InputError) or isinstance(found[1], InputError):
        assert str(found[0]) == str(found[1])
        str(found[0]).encode()  # what a terminal can show
        return found[0]
    return found[0], found[1]


@pytest.mark.faults
@given(made=files())
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_broken_files_are_refused_or_left_with_their_good_rows(
    made: tuple[bool, bytes, list[int]], tokenizer: PreTrainedTokenizerFast, tiny_backbone: Path
) -> None:
    chat, content, untouched = made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_bytes(content)
        rows = rows_of(content, chat)
        bad = {number for number, messages in rows if messages is None}

        strict = both(sweep_of(path, tiny_backbone, chat, 0.0), tokenizer)
        enough = len(rows) > HELD
        assert isinstance(strict, InputError) == (bool(bad) or not enough)
        if isinstance(strict, InputError) and (enough or "held out" not in strict.reason) and rows:
            assert strict.place in [f"{path} line {number}" for number in bad]

        lenient = both(sweep_of(path, tiny_backbone, chat, 1.0), tokenizer)
        held = draw(len(rows), 0, HELD)
        parts = [[i for i in range(len(rows)) if i not in held], held]
        good = [[i for i in part if rows[i][1] is not None] for part in parts]
        assert isinstance(lenient, InputError) == (not all(good))
        if isinstance(lenient, InputError):
            return
        plan, splits = lenient
        for part, kept, data in zip(parts, good, splits, strict=True):
            assert [(e.index, e.messages) for e in data.examples] == [(i, rows[i][1]) for i in kept]
            assert [e.origin for e in data.examples] == [f"{path} line {rows[i][0]}" for i in kept]
            left = [f"{path} line {rows[i][0]}" for i in part if i not in kept]
            listed = data.folder / "quarantine.jsonl"
            found = [json.loads(line) for line in listed.read_text().splitlines()] if left else []
            assert [entry["origin"] for entry in found] == left
            assert (data.counts["bad"], data.counts["read"]) == (len(left), len(kept))
        (backbone,) = plan.backbones
        assert backbone.samples == len(good[0])
        assert len(backbone.left_out) == sum(data.counts["bad"] > 0 for data in splits)
        survivors = {e.response for data in splits for e in data.examples}
        assert {f"It is {number}." for number in untouched} <= survivors
