"""Folders that are written once and shared: whole or not there at all, however many processes write at once."""

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysft.errors import InputError

MANIFEST = "manifest.json"


def ensure(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The facts about `folder`, after writing it where it is missing or damaged.

    write(folder) fills an empty folder and returns the facts, which become JSON. It runs in a sibling that is renamed
    when it is whole; of several processes that do so at once, the first wins and the others take its folder.
    Raises InputError where the place cannot be written.
    """
    while True:
        found = folder.exists()  # asked first: a folder that appears after this is another process's, and whole
        if (facts := _intact(folder)) is not None:
            return facts
        try:
            if found:
                _remove(folder)
            _write(folder, write)
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}."
            raise InputError(
                str(folder.parent), reason, "Free space there, or choose another output folder."
            ) from error


def _intact(folder: Path) -> dict[str, Any] | None:
    """The folder's facts; None where a file is missing or has another size than when it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        return manifest["facts"] if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not what `_write` wrote
        return None


def _write(folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    temporary = _sibling(folder)
    temporary.mkdir(parents=True)
    try:
        facts = write(temporary)
        files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"facts": facts, "files": files}, indent=1))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(folder: Path) -> None:
    aside = _sibling(folder)
    try:
        folder.rename(aside)
    except FileNotFoundError:  # nothing is there, or another process has removed it
        return
    shutil.rmtree(aside)


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
