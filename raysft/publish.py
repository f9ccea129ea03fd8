"""What is written is there whole or not at all, whatever ends the process or fills the disk."""

import os
from pathlib import Path


def publish(path: Path, content: str) -> None:
    """Write the text beside the path, and rename it into place. Raises OSError, which names the path."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a node that dies may leave the name without the text
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def append(path: Path, lines: str) -> None:
    """Add lines to a file that nobody else writes. Raises OSError, which names the path, and leaves the file as it was.

    A kill may still leave the last line cut short.
    """
    left = lines.encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from None
