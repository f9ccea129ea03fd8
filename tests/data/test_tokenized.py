import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from raysft.config import DataConfig, FileSource, ReasoningGymSource
from raysft.data.render import render
from raysft.data.tokenized import TokenizedData, prepare, split
from raysft.errors import InputError
from raysft.objectives import IGNORE_INDEX

Jsonl = Callable[..., DataConfig]
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
ROWS = [{"prompt": f"What is {i}?", "response": "It is four. " * (i + 1)} for i in range(6)]


def folders(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir())


def test_samples_are_the_rendered_examples(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*ROWS)
    tokenized = prepare(data.train, data, tokenizer, tmp_path / "cache")
    assert len(tokenized) == len(tokenized.examples) == 6
    total = supervised_total = 0
    for i, example in enumerate(tokenized.examples):
        assert (example.index, example.response) == (i, ROWS[i]["response"])
        tokens, labels = tokenized.sample(i)
        ids, supervised = render(example, tokenizer, "chat")
        assert tokens.dtype == labels.dtype == np.int64
        assert tokens.tolist() == ids
        assert labels.tolist() == [t if s else IGNORE_INDEX for t, s in zip(ids, supervised, strict=True)]
        assert labels[0] == IGNORE_INDEX
        assert tokenized.lengths[i] == len(ids)
        assert tokenized.supervised[i] == sum(supervised)
        total, supervised_total = total + len(ids), supervised_total + sum(supervised)
    assert tokenized.lengths.dtype == tokenized.supervised.dtype == np.int64
    assert tokenized.left_out() is None
    assert tokenized.counts == {
        "bad": 0,
        "read": 6,
        "kept": 6,
        "dropped_truncated": 0,
        "tokens": total,
        "supervised_tokens": supervised_total,
        "longest": max(tokenized.lengths),
    }
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            tokenized.sample(outside)


def test_a_sample_whose_response_would_be_cut_is_dropped(
    tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path
) -> None:
    data = jsonl(*ROWS)
    lengths = prepare(data.train, data, tokenizer, tmp_path).lengths
    for kept in (6, 4, 3):
        cut = data.model_copy(update={"max_length": int(lengths[kept - 1])})
        tokenized = prepare(data.train, cut, tokenizer, tmp_path)
        assert tokenized.lengths.tolist() == lengths[:kept].tolist()
        assert [e.index for e in tokenized.examples] == list(range(kept))
        assert tokenized.counts["dropped_truncated"] == 6 - kept
        assert tokenized.counts["tokens"] == lengths[:kept].sum()


def test_too_many_dropped_samples_are_refused(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*ROWS)
    lengths = prepare(data.train, data, tokenizer, tmp_path).lengths
    cut = data.model_copy(update={"max_length": int(lengths[1]), "max_dropped": 0.6})
    message = rf"train\.jsonl: 4 of 6 samples are longer .* Raise data\.max_length .* has {lengths[-1]} tokens"
    with pytest.raises(InputError, match=message):
        prepare(data.train, cut, tokenizer, tmp_path)
    assert len(prepare(data.train, cut.model_copy(update={"max_dropped": 0.7}), tokenizer, tmp_path)) == 2
    with pytest.raises(InputError, match=message):  # also when the folder is there already
        prepare(data.train, cut, tokenizer, tmp_path)
    nothing = data.model_copy(update={"max_length": 2, "max_dropped": 1.0})
    with pytest.raises(InputError, match="6 of 6 samples"):
        prepare(data.train, nothing, tokenizer, tmp_path)


def test_bad_samples_are_left_out_counted_and_listed(
    tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path
) -> None:
    good = jsonl(*ROWS, name="good.jsonl")
    data = jsonl(ROWS[0], "{", *ROWS[1:5], {"prompt": "p"}, ROWS[5], max_bad=0.25)
    tokenized, expected = (prepare(d.train, d, tokenizer, tmp_path / "cache") for d in (data, good))
    assert [tokenized.sample(i)[0].tolist() for i in range(6)] == [expected.sample(i)[0].tolist() for i in range(6)]
    assert [e.index for e in tokenized.examples] == [0, 2, 3, 4, 5, 7]
    assert tokenized.counts == expected.counts | {"bad": 2}
    listed = tokenized.folder / "quarantine.jsonl"
    path = data.train.path
    missing = "field 'response' is missing. Valid: prompt. The name is set with data.response."
    first = "is not JSON: Expecting property name enclosed in double quotes (column 2)."
    assert [json.loads(line) for line in listed.read_text().splitlines()] == [
        {"origin": f"{path} line 2", "reason": first},
        {"origin": f"{path} line 7", "reason": missing},
    ]
    told = f"2 of 8 samples cannot be read. The first: {path} line 2: {first} They are left out, and listed in {listed}"
    again = prepare(data.train, data, tokenizer, tmp_path / "cache")  # from the cache
    assert (again.left_out(), tokenized.left_out()) == (told, told)
    with pytest.raises(InputError, match=r"train\.jsonl line 2: is not JSON"):  # though the folder is there
        prepare(data.train, data.model_copy(update={"max_bad": 0.0}), tokenizer, tmp_path / "cache")
    with pytest.raises(InputError, match=r"2 of 8 samples cannot be read"):
        prepare(data.train, data.model_copy(update={"max_bad": 0.2}), tokenizer, tmp_path / "cache")


def test_the_list_of_bad_samples_is_bounded(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*["[]"] * 1500, *ROWS, max_bad=1.0)
    tokenized = prepare(data.train, data, tokenizer, tmp_path)
    listed = [json.loads(line) for line in (tokenized.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["origin"] for entry in listed] == [f"{data.train.path} line {n}" for n in range(1, 1001)]
    assert (tokenized.counts["bad"], len(tokenized)) == (1500, 6)


def test_the_same_is_tokenised_once(make_tokenizer: MakeTokenizer, jsonl: Jsonl, tmp_path: Path) -> None:
    data, cache, tokenizer = jsonl(*ROWS), tmp_path / "cache", make_tokenizer()
    first = prepare(data.train, data, tokenizer, cache)
    written = (cache / first.fingerprint / "manifest.json").stat().st_mtime_ns
    copied = FileSource(path=Path(shutil.copy(data.train.path, tmp_path / "copy.jsonl")))
    same = data.model_copy(update={"seed": 9, "train_samples": 5, "max_dropped": 0.1})
    assert prepare(copied, same, make_tokenizer(), cache).fingerprint == first.fingerprint
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)  # leaves a state behind
    assert prepare(data.train, data, tokenizer, cache).fingerprint == first.fingerprint
    assert (cache / first.fingerprint / "manifest.json").stat().st_mtime_ns == written
    assert folders(cache) == [first.fingerprint]


def test_whatever_changes_the_tokens_changes_the_fingerprint(
    tokenizer: PreTrainedTokenizerFast, make_tokenizer: MakeTokenizer, jsonl: Jsonl, tmp_path: Path
) -> None:
    data = jsonl(*ROWS)
    chat = str(tokenizer.chat_template)
    settings = [
        {"prompt": "response"},
        {"response": "prompt"},
        {"system": "s"},
        {"prompt_suffix": "!"},
        {"template": "qwen"},
        {"max_length": 500},
        {"max_bad": 0.5},
    ]
    made = [prepare(data.train, data.model_copy(update=s), tokenizer, tmp_path) for s in [{}, *settings]]
    for other in (make_tokenizer(" " + chat), make_tokenizer(vocab_size=300), make_tokenizer(eos="<|im_end|>")):
        made.append(prepare(data.train, data, other, tmp_path))
    for seed, limit, skip in ((0, 3, 0), (1, 3, 0), (0, 2, 0), (0, 3, 2), (0, None, 2)):
        made.append(prepare(data.train, data.model_copy(update={"seed": seed}), tokenizer, tmp_path, limit, skip))
    other_rows = jsonl(*ROWS[1:], name="other.jsonl")
    made.append(prepare(other_rows.train, other_rows, tokenizer, tmp_path))
    assert len({t.fingerprint for t in made}) == len(made)
    assert all(len(t.fingerprint) == 16 for t in made)


@pytest.mark.parametrize("name", ["tokens.npy", "supervised.npy", "offsets.npy", "examples.jsonl", "manifest.json"])
def test_a_damaged_folder_is_made_anew(
    tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path, name: str
) -> None:
    data = jsonl(*ROWS)
    before = prepare(data.train, data, tokenizer, tmp_path / "cache")
    expected = [before.sample(i)[0].tolist() for i in range(6)]
    file = tmp_path / "cache" / before.fingerprint / name
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])
    after = prepare(data.train, data, tokenizer, tmp_path / "cache")
    assert [after.sample(i)[0].tolist() for i in range(6)] == expected
    assert file.read_bytes() == content


def test_arrays_are_mapped_and_not_read(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*ROWS)
    tokenized = prepare(data.train, data, tokenizer, tmp_path)
    assert isinstance(tokenized._tokens, np.memmap)
    assert isinstance(tokenized._supervised, np.memmap)
    assert tokenized._tokens.dtype == np.int32


def _prepare_in_process(
    data: DataConfig, tokenizer: PreTrainedTokenizerFast, cache: Path, start: "multiprocessing.synchronize.Barrier",
    results: "multiprocessing.Queue[tuple[str, list[int], str]]",
) -> None:  # fmt: skip
    start.wait()
    tokenized = prepare(data.train, data, tokenizer, cache)
    results.put((tokenized.fingerprint, tokenized.sample(5)[0].tolist(), tokenized.examples[5].response))


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_build_at_once_share_one_folder(
    tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path, damaged: bool
) -> None:
    data, cache = jsonl(*ROWS * 50), tmp_path / "cache"
    expected = prepare(data.train, data, tokenizer, tmp_path / "alone")
    if damaged:
        shutil.copytree(tmp_path / "alone", cache)
        (cache / expected.fingerprint / "tokens.npy").write_bytes(b"half")
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(3), context.Queue()
    arguments = (data, tokenizer, cache, start, results)
    processes = [context.Process(target=_prepare_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert found == [(expected.fingerprint, expected.sample(5)[0].tolist(), expected.examples[5].response)] * 3
    assert folders(cache) == [expected.fingerprint]


def origins(tokenized: TokenizedData) -> list[str]:
    return [e.origin for e in tokenized.examples]


def test_held_out_data_of_their_own(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    test = jsonl(*ROWS, name="test.jsonl").train
    data = jsonl(*ROWS * 2, heldout=test, heldout_samples=4, train_samples=9)
    train, heldout = split(data, tokenizer, tmp_path)
    assert (len(train), len(heldout)) == (9, 4)
    assert all("train.jsonl" in o for o in origins(train))
    assert all("test.jsonl" in o for o in origins(heldout))


def test_held_out_data_split_off(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*ROWS * 3, heldout_samples=5)
    train, heldout = split(data, tokenizer, tmp_path)
    assert (len(train), len(heldout)) == (13, 5)
    assert not set(origins(train)) & set(origins(heldout))
    fewer, same = split(data.model_copy(update={"train_samples": 7}), tokenizer, tmp_path)
    assert same.fingerprint == heldout.fingerprint
    assert len(fewer) == 7
    assert set(origins(fewer)) < set(origins(train))
    _, other = split(data.model_copy(update={"seed": 1}), tokenizer, tmp_path)
    assert origins(other) != origins(heldout)


def test_bad_samples_do_not_move_between_splits(
    tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path
) -> None:
    whole = jsonl(*ROWS * 3, heldout_samples=5)
    train, heldout = split(whole, tokenizer, tmp_path)
    spoiled = {train.examples[2].index, heldout.examples[0].index, heldout.examples[4].index}
    rows = ["{" if i in spoiled else row for i, row in enumerate(ROWS * 3)]
    parts = split(jsonl(*rows, heldout_samples=5, max_bad=0.4), tokenizer, tmp_path)
    for before, after in zip((train, heldout), parts, strict=True):
        assert origins(after) == [e.origin for e in before.examples if e.index not in spoiled]
    assert [part.counts["bad"] for part in parts] == [1, 2]


def test_nothing_left_to_train_on_is_refused(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none is left to train on\. Lower data\.heldout_samples"):
        split(jsonl(*ROWS, heldout_samples=6), tokenizer, tmp_path)


def test_a_generated_task_is_split(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = DataConfig(train=ReasoningGymSource(task="leg_counting", size=12), heldout_samples=4)
    train, heldout = split(data, tokenizer, tmp_path)
    assert sorted(e.index for e in train.examples + heldout.examples) == list(range(12))


def test_a_manifest_says_what_was_kept(tokenizer: PreTrainedTokenizerFast, jsonl: Jsonl, tmp_path: Path) -> None:
    data = jsonl(*ROWS)
    tokenized = prepare(data.train, data, tokenizer, tmp_path)
    manifest = json.loads((tmp_path / tokenized.fingerprint / "manifest.json").read_text())
    assert manifest["facts"] == tokenized.counts
    assert set(manifest["files"]) == {"tokens.npy", "supervised.npy", "offsets.npy", "examples.jsonl"}
