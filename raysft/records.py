"""What a model answered, one record of each answer: as compressed JSON lines, and as the table that MLflow shows."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from raysft.errors import InputError

Record = dict[str, Any]

GZIP = b"\x1f\x8b"  # its first bytes
TABLE_ROWS = 1000  # of the table in MLflow's UI, which loads all of it into the browser


def write_records(records: list[Record], path: Path) -> None:
    """One JSON object a line, gzip; the file is there whole or not at all, and equal records give equal bytes."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))
    temporary.replace(path)


def read_records(path: Path) -> list[Record]:
    """What `write_records` wrote. Raises InputError for a file that is something else.

    A server of MLflow that keeps artifacts in a bucket hands them out uncompressed, under the same name.
    """
    try:
        content = path.read_bytes()
        lines = gzip.decompress(content) if content.startswith(GZIP) else content
        records = [json.loads(line) for line in lines.splitlines()]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "not JSON lines"
        raise InputError(str(path), f"cannot be read as records: {reason}.", "Name a completions.jsonl.gz.") from None
    if not all(isinstance(r, dict) and {"completion", "reference", "problem"} <= r.keys() for r in records):
        raise InputError(str(path), "holds no records of answers.", "Name a completions.jsonl.gz.")
    return records


def as_table(records: list[Record]) -> str:
    """JSON as pandas' orient="split" has it: at most TABLE_ROWS records at an even stride, their keys as columns."""
    shown = min(len(records), TABLE_ROWS)
    rows = [records[i * len(records) // shown] for i in range(shown)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(column)) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data})


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
