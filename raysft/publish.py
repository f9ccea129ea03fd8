"""Small files that are there whole or not at all, whatever ends the process or fills the disk."""

import os
from pathlib import Path


def publish(path: Path, content: str) -> None:
    """Write the text beside the path, and rename it into place."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a node that dies may leave the name without the text
    temporary.rename(path)
