"""Checkpoints of one trial: written beside, then published by one rename with a manifest; a broken one is passed over.

In a bucket, which renames nothing, the manifest comes last, and what has none is passed over.

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
from raysft.store import Store

MANIFEST = "manifest.json"
TORCHS_WRITER = "inline_container"  # in its errors, which are of no kind of their own and say nothing of the disk
log = logging.getLogger(__name__)


def save(
    store: Store, step: int, identity: dict[str, Any], ranks: Ranks, write: Callable[[Path], None], keep: int
) -> None:
    """Publish the checkpoint of `step` (completed optimizer steps) and keep the newest `keep`. Collective.

    store: of the trial's checkpoints; write(folder) writes this rank's files; identity is stored and compared by
    `latest`. Raises OSError where the disk does not take them: the checkpoints before are left as they are. A rank that
    raises leaves the others waiting.
    """
    final = store.folder / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}")
    if ranks.keeps_files:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.barrier()
    with _told(temporary):
        write(temporary)
    ranks.barrier()
    parts = ranks.gather(_describe(temporary) if ranks.keeps_files else {})
    files = {path: described for part in parts for path, described in part.items()}
    manifest = json.dumps(identity | {"step": step, "world_size": ranks.world, "files": files}, indent=1)
    if ranks.rank == 0:
        store.remove(final)
    ranks.barrier()
    if ranks.keeps_files:
        with _told(temporary):
            if store.uri is None:
                (temporary / MANIFEST).write_text(manifest)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        store.push(final)
    ranks.barrier()
    if ranks.rank == 0:
        if store.uri is not None:  # what has no manifest is no checkpoint yet
            store.publish(final / MANIFEST, manifest)
        steps = _steps(store)
        whole = [name for name in steps if MANIFEST in store.names(store.folder / name)]
        for name in set(steps).difference(whole[-keep:]):  # the older ones, and what a kill left half done
            store.remove(store.folder / name)
    ranks.barrier()
    if ranks.keeps_files and store.uri is not None:
        shutil.rmtree(store.folder)


def _steps(store: Store) -> list[str]:
    """Names of the checkpoints, whole or not, the oldest first."""
    return [name for name in store.names(store.folder) if name.startswith("step-")]


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
        code = errno.ENOSPC if isinstance(error, RuntimeError) else error.errno or errno.EIO  # torch names none
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


def latest(store: Store, identity: dict[str, Any], ranks: Ranks) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every rank; None where there is none. Collective.

    Raises TrialFailed where it was written by another configuration.
    """
    for name in reversed(ranks.broadcast(_steps(store) if ranks.rank == 0 else None)):
        folder = store.folder / name
        if ranks.keeps_files:
            store.pull(folder)
        manifest = _manifest(folder) if ranks.keeps_files else {}
        if None in ranks.gather(manifest if manifest is None else {}):
            if ranks.rank == 0:
                log.warning("%s is damaged; going back to the checkpoint before it.", folder)
            continue
        manifest = ranks.broadcast(manifest)
        for key, value in identity.items():
            if manifest.get(key) != value:
                raise TrialFailed(f"{folder} was written with {key} {manifest.get(key)}, but this run has {value}.")
        return Checkpoint(folder, int(manifest["step"]), int(manifest["world_size"]))
    return None


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Of a whole checkpoint; None for a damaged one."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        whole = manifest["files"] == _describe(folder) and f"step-{manifest['step']:08d}" == folder.name
        return manifest if whole and manifest["world_size"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describe(folder: Path) -> dict[str, list[Any]]:
    """Relative path -> [bytes, SHA-256] of every file but the manifest."""
    described = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    return described
