"""Checkpoints of one trial: written beside, then published by one rename with a manifest; a broken one is passed over.

A folder `step-00000020` holds what every rank wrote and `manifest.json`: step, world size, config hash, and size and
hash of each file.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysft.errors import TrialFailed
from raysft.ranks import Ranks

MANIFEST = "manifest.json"
TORCHS_WRITER = "inline_container"  # in its errors, which are of no kind of their own and say nothing of the disk
log = logging.getLogger(__name__)


def save(
    root: Path, step: int, identity: dict[str, Any], ranks: Ranks, write: Callable[[Path], None], keep: int
) -> None:
    """Publish the checkpoint of `step` (completed optimizer steps) and keep the newest `keep`. Collective.

    write(folder) writes this rank's files; identity is stored and compared by `latest`. Raises OSError where the disk
    does not take them: the checkpoints before are left as they are. A rank that raises leaves the others waiting.
    """
    temporary = root / f".step-{step:08d}"
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.barrier()
    with _told(temporary):
        write(temporary)
    ranks.barrier()
    if ranks.rank == 0:
        final = root / f"step-{step:08d}"
        manifest = identity | {"step": step, "world_size": ranks.world, "files": _describe(temporary)}
        with _told(temporary):
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in sorted(root.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    ranks.barrier()


@contextmanager
def _told(temporary: Path) -> Iterator[None]:
    """Raises OSError, with the place and what is free there, for what keeps a checkpoint from being written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and TORCHS_WRITER not in str(error):
            raise
        free = shutil.disk_usage(temporary).free / 2**20
        shutil.rmtree(temporary, ignore_errors=True)
        code = error.errno if isinstance(error, OSError) and error.errno else errno.ENOSPC  # torch names none
        raise OSError(
            code,
            f"the checkpoint {temporary.name[1:]} cannot be written to {temporary.parent} "
            f"({os.strerror(code)}), where {free:.1f} MiB were free; the one before it is whole",
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """step: completed optimizer steps; world: ranks that wrote it."""

    folder: Path
    step: int
    world: int


def latest(root: Path, identity: dict[str, Any], ranks: Ranks) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every rank; None where there is none. Collective.

    Raises TrialFailed where it was written by another configuration.
    """
    found = _latest(root) if ranks.rank == 0 else None
    found = ranks.broadcast(found)
    if found is None:
        return None
    folder, manifest = found
    for key, value in identity.items():
        if manifest.get(key) != value:
            raise TrialFailed(f"{folder} was written with {key} {manifest.get(key)}, but this run has {value}.")
    return Checkpoint(folder, int(manifest["step"]), int(manifest["world_size"]))


def _latest(root: Path) -> tuple[Path, dict[str, Any]] | None:
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            whole = manifest["files"] == _describe(folder) and f"step-{manifest['step']:08d}" == folder.name
            whole = whole and manifest["world_size"] > 0
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            return folder, manifest
        log.warning("%s is damaged; going back to the checkpoint before it.", folder)
    return None


def _describe(folder: Path) -> dict[str, list[Any]]:
    """Relative path -> [bytes, SHA-256] of every file but the manifest."""
    described = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    return described
