"""What a model wrote, as compressed JSON lines."""

import gzip
import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_records(records: list[Record], path: Path) -> None:
    """One JSON object a line, gzip; the file is there whole or not at all, and equal records give equal bytes."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(gzip.compress(lines.encode(), mtime=0))
    temporary.replace(path)


def read_records(path: Path) -> list[Record]:
    """What `write_records` wrote."""
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]
