"""Records as files and as a table."""

import gzip
import json
from pathlib import Path

import pandas
import pytest

from raysft.errors import InputError
from raysft.records import TABLE_ROWS, as_table, read_records, write_records

RECORD = {"task": "t", "problem": 0, "reference": "1", "completion": 'é "\n\u2028', "score": 0.5, "answer": None}


def test_records_are_read_as_written(tmp_path: Path) -> None:
    records = [RECORD, RECORD | {"problem": 1, "options": {"A": "x"}}]
    write_records(records, tmp_path / "a.gz")
    write_records(records, tmp_path / "b.gz")
    assert read_records(tmp_path / "a.gz") == records
    (tmp_path / "b.gz").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))  # as a server may hand it out
    assert read_records(tmp_path / "b.gz") == records
    write_records(records, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gz", "b.gz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", "not JSON lines"),
        (gzip.compress(b"not json\n", mtime=0), "not JSON lines"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), "holds no records of answers"),
        (gzip.compress(b"[1]\n", mtime=0), "holds no records of answers"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-6], "not JSON lines"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:12] + b"\xff" * 20, "not JSON lines"),
        (None, "No such file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "completions.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_records(path)


def test_the_table_has_all_keys_and_at_most_so_many_rows_of_all_parts(tmp_path: Path) -> None:
    records = [RECORD | {"problem": i} for i in range(3 * TABLE_ROWS)]
    records[-3]["options"] = {"A": "x"}
    (tmp_path / "table.json").write_text(as_table(records))
    table = pandas.read_json(tmp_path / "table.json", orient="split")
    assert list(table["problem"]) == list(range(0, 3 * TABLE_ROWS, 3))
    assert list(table.columns) == [*RECORD, "options"]
    assert table["options"].iloc[-1] == json.dumps({"A": "x"})
    assert json.loads(as_table([])) == {"columns": [], "data": []}
