import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from raysft.config import FileSource, HubSource, ReasoningGymSource
from raysft.data.rows import content_id, describe, read_rows
from raysft.errors import InputError

ROWS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(4)]


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (folder / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    return folder


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> FileSource:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n\n".join(json.dumps(r) for r in rows))  # with empty lines between
    return FileSource(path=path)


@pytest.mark.parametrize(
    ("name", "place"), [("a.jsonl", "line 5"), ("a.json", "item 2"), ("a.parquet", "row 2"), ("A.JSONL", "line 5")]
)
def test_files_are_read_and_rows_named(tmp_path: Path, name: str, place: str) -> None:
    source = write(tmp_path / name)
    rows = read_rows(source)
    assert rows.count == 4
    assert rows.take([3, 0]) == [ROWS[3], ROWS[0]]
    assert rows.place(2) == f"{source.path} {place}"


def test_unusual_text_survives(tmp_path: Path) -> None:
    row = {"prompt": "\u2028 ünïcode \x85 ☃", "response": "\r"}
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_rows(FileSource(path=path)).take([0]) == [row]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": ', r"a\.jsonl line 2: is not JSON: .* \(column 7\)"),
        ("a.jsonl", b'{"a": 1}\n[1]', r"a\.jsonl line 2: is not an object but of type list"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "\xff"}\n\n', r"a\.jsonl line 3: is not UTF-8"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl line 1: cannot be read as JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1: cannot be read as JSON"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: holds no samples"),
        ("a.json", b'[{"a": 1},\n{"a": }]', r"a\.json: is not JSON: .* \(line 2, column 7\)"),
        ("a.json", b'{"a": 1}', r"a\.json: does not hold a list of objects\. Use \.jsonl"),
        ("a.json", b"[]", r"a\.json: holds no samples"),
        ("a.json", b'[{"a": 1}, 7]', r"a\.json item 1: is not an object but of type int"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet: is not a readable Parquet file"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(FileSource(path=tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "read", "bad"),
    [
        (
            "a.jsonl",
            b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n{"a": 2}\r\n',
            [{"a": 1}, {}, {"a": 2}],
            {1: "line 3: is not JSON"},
        ),
        (
            "a.jsonl",
            b'[1]\n{"a": "caf\xe9"}\n{"a": "ok"}',
            [{}, {}, {"a": "ok"}],
            {0: "line 1: is", 1: "line 2: is not UTF-8"},
        ),
        ("a.json", b'[{"a": 1}, 7, {"a": 2}]', [{"a": 1}, {}, {"a": 2}], {1: "item 1: is not an object"}),
    ],
)
def test_bad_samples_keep_their_places_where_they_are_asked_for(
    tmp_path: Path, name: str, content: bytes, read: list[object], bad: dict[int, str]
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = read_rows(FileSource(path=tmp_path / name), lenient=True)
    assert rows.take(range(rows.count)) == read
    assert list(rows.bad) == list(bad)
    for index, error in rows.bad.items():
        assert error.place == rows.place(index)
        assert str(error).startswith(f"{tmp_path / name} {bad[index]}")
    with pytest.raises(InputError) as refused:
        read_rows(FileSource(path=tmp_path / name))
    assert str(refused.value) == str(rows.bad[min(bad)])


@pytest.mark.parametrize(("name", "content"), [("a.json", b'[{"a": 1}, {"a": }]'), ("a.json", b'[{"a": "\xff"}]')])
def test_a_file_that_is_broken_as_a_whole_is_always_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json.* is not (JSON|UTF-8)"):
        read_rows(FileSource(path=tmp_path / name), lenient=True)


def test_columns_that_python_cannot_hold_are_refused(tmp_path: Path) -> None:
    """Parquet takes text of any bytes, and dates beyond Python's."""
    offsets, text = pyarrow.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pyarrow.py_buffer(b"\xff\xfe")
    columns = [pyarrow.StringArray.from_buffers(1, offsets, text), pyarrow.array([2**40], pyarrow.timestamp("s"))]
    for column in columns:
        pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet: cannot be read: "):
            read_rows(FileSource(path=tmp_path / "a.parquet")).take([0])


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"does not exist\. Did you mean 'train\.jsonl'\?"):
        read_rows(FileSource(path=tmp_path / "trian.jsonl"))
    with pytest.raises(InputError, match=r"does not exist\. There is no such file in"):
        read_rows(FileSource(path=tmp_path / "nowhere" / "train.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_rows(FileSource(path=tmp_path / "folder.jsonl"))


def test_a_hub_data_set_is_read(hub_folder: Path) -> None:
    rows = read_rows(HubSource(path=str(hub_folder)))
    assert rows.count == 4
    assert rows.take([2, 1]) == [ROWS[2], ROWS[1]]
    assert rows.place(1) == f"{hub_folder}[train] row 1"
    assert read_rows(HubSource(path=str(hub_folder), split="test")).count == 1
    assert read_rows(HubSource(path=str(hub_folder), split="train[:50%]")).count == 2


def test_hub_failures_are_refused(hub_folder: Path) -> None:
    with pytest.raises(InputError, match=r"sums\[trian\]: cannot be loaded: Unknown split"):
        read_rows(HubSource(path=str(hub_folder), split="trian"))
    with pytest.raises(InputError, match=r"cannot be loaded: .* Check path, subset, split, revision and access"):
        read_rows(HubSource(path=str(hub_folder / "nothing")))


def test_a_reasoning_gym_task_is_generated_alike_each_time() -> None:
    source = ReasoningGymSource(task="leg_counting", size=5, params={"max_animals": 4})
    rows = read_rows(source)
    assert rows.count == 5
    assert rows.place(3) == "reasoning_gym leg_counting item 3"
    assert rows.take([3])[0]["question"] == read_rows(source).take([0, 3])[1]["question"]


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("figlet_fonts", {}, r"is not a task of reasoning-gym\. Did you mean 'figlet_font'\?"),
        ("figlet_font", {"min_word_length": 2}, r"has no parameter 'min_word_length'\. Did you mean 'min_word_len'\?"),
        ("figlet_font", {"min_word_len": 9}, "refuses its parameters: min_word_len must be less"),
        ("figlet_font", {"size": 9}, "refuses its parameters: .* multiple values for keyword argument 'size'"),
        ("figlet_font", {"static_font": "no such font"}, r"static_font must be one of .{,300} \.\.\.\.$"),
        ("word_sorting", {"min_word_length": 90, "max_word_length": 95}, "cannot be generated: Sample larger than"),
    ],
)
def test_impossible_tasks_are_refused(task: str, params: dict[str, object], message: str) -> None:
    source = ReasoningGymSource(task=task, size=5, params=params)
    with pytest.raises(InputError, match=message):
        read_rows(source).take([0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_the_content_id_of_a_file_is_that_of_its_content(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    first, copy = write(tmp_path / name), write(tmp_path / "other" / name)
    assert content_id(first) == content_id(copy)
    write(tmp_path / "other" / name, ROWS[:3])
    assert content_id(first) != content_id(copy)


def test_the_content_id_of_a_data_set_is_that_of_its_content(hub_folder: Path) -> None:
    source = HubSource(path=str(hub_folder))
    before = content_id(source)
    assert before == content_id(source)
    assert before != content_id(HubSource(path=str(hub_folder), split="test"))
    with (hub_folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert before != content_id(source)


def test_the_content_id_of_a_task_holds_its_parameters() -> None:
    sources = [ReasoningGymSource(task="figlet_font", size=n, params=p) for n in (5, 6) for p in ({}, {"a": 1})]
    assert len({content_id(s) for s in sources}) == 4


def test_sources_are_described(tmp_path: Path) -> None:
    assert describe(FileSource(path=Path("a.json"))) == "a.json"
    assert describe(HubSource(path="openai/gsm8k", split="test")) == "openai/gsm8k[test]"
    assert describe(ReasoningGymSource(task="figlet_font", size=1)) == "reasoning_gym figlet_font"
