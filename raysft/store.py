"""Where the files of a sweep are kept: in its output folder, or in a bucket of which each machine copies what it needs.

A shared folder needs nothing of this. A bucket (S3, Google Cloud Storage) has no renaming and no appending, but
an object is there whole or not at all; so a file is written on the machine first and put into the bucket as it is.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from raysft.errors import InputError
from raysft.publish import publish

PROBE = ".raysft-was-here"
FIX = (
    "Check its name and region, and this machine's rights (AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS, or the machine's own role)."
)


class StorageLost(OSError):
    """A bucket that does not answer, or does not take what is put into it."""


@dataclass(frozen=True)
class Store:
    """A folder of this machine. uri: of the place in a bucket that holds the same; None where the folder is shared.

    Paths are below the folder. Without a uri, pushing and pulling do nothing; with one, all raise StorageLost.
    """

    folder: Path
    uri: str | None = None

    def below(self, *names: str) -> "Store":
        """The same of a folder in this one."""
        return Store(self.folder.joinpath(*names), self.uri and "/".join([self.uri.rstrip("/"), *names]))

    def publish(self, path: Path, text: str) -> None:
        """Write a file, whole or not at all."""
        publish(path, text)
        self.push(path)

    def push(self, path: Path) -> None:
        """Put a file, or all files of a folder, into the bucket."""
        if self.uri is None:
            return
        from pyarrow import fs

        with _in_bucket(self.uri):
            files, place = self._place(path)
            fs.copy_files(str(path), place, destination_filesystem=files)

    def pull(self, path: Path, but: Collection[str] = ()) -> None:
        """Get a file, or all files of a folder, as the bucket has them now; what is not there is removed.

        but: names of folders on the way that are left out.
        """
        if self.uri is None:
            return
        from pyarrow import fs

        with _in_bucket(self.uri):
            files, place = self._place(path)
            info = files.get_file_info(place)
            if info.type == fs.FileType.File:
                _get(files, place, path)
                return
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            if info.type != fs.FileType.Directory:
                return
            for found in files.get_file_info(fs.FileSelector(place, recursive=True)):
                below = Path(found.path).relative_to(place)
                if found.type == fs.FileType.File and not set(below.parts).intersection(but):
                    _get(files, found.path, path / below)

    def remove(self, path: Path) -> None:
        """Remove a file or folder, here and in the bucket; it need not be there."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if self.uri is None:
            return
        from pyarrow import fs

        with _in_bucket(self.uri):
            files, place = self._place(path)
            kind = files.get_file_info(place).type
            if kind == fs.FileType.Directory:
                files.delete_dir(place)
            elif kind == fs.FileType.File:
                files.delete_file(place)

    def names(self, folder: Path) -> list[str]:
        """What lies in a folder, sorted; nothing where there is none."""
        if self.uri is None:
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        from pyarrow import fs

        with _in_bucket(self.uri):
            files, place = self._place(folder)
            return sorted(info.base_name for info in files.get_file_info(fs.FileSelector(place, allow_not_found=True)))

    def _place(self, path: Path) -> tuple[Any, str]:
        """The bucket's file system, and the path's place in it."""
        files, root = _bucket(str(self.uri))
        below = path.relative_to(self.folder).as_posix()
        return files, root if below == "." else f"{root}/{below}"


@contextmanager
def _in_bucket(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageLost(f"storage {uri} cannot be reached or written to: {_first_line(error)}") from error


@cache
def _bucket(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    files, root = fs.FileSystem.from_uri(uri)
    return files, root.rstrip("/")


def _get(files: Any, place: str, path: Path) -> None:
    """Beside the path first, so that a reader sees the file before or the file after."""
    from pyarrow import fs

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.coming")
    fs.copy_files(place, str(temporary), source_filesystem=files)
    temporary.replace(path)


def check_storage(uri: str | None) -> None:
    """Raises InputError for a bucket that cannot be written to, read, and cleared again."""
    if uri is None:
        return
    try:
        files, root = _bucket(uri)
        place = f"{root}/{PROBE}"
        with files.open_output_stream(place) as stream:
            stream.write(b"here")
        with files.open_input_stream(place) as stream:
            stream.read()
        files.delete_file(place)
    except (OSError, ValueError) as error:
        raise InputError(f"storage {uri}", f"cannot be used: {_first_line(error)}.", FIX) from None


def read_object(uri: str) -> bytes:
    """What a bucket holds at an address. Raises InputError where that cannot be read."""
    try:
        files, place = _bucket(uri)
        with files.open_input_stream(place) as stream:
            content: bytes = stream.read()
        return content
    except (OSError, ValueError) as error:
        raise InputError(uri, f"cannot be read: {_first_line(error)}.", FIX) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".")


def is_in_bucket(path: str) -> bool:
    return path.startswith(("s3://", "gs://"))


def fetched(path: str) -> str:
    """A model's folder as loaders take it: what lies in a bucket is copied to this user's cache, once for each content.

    Raises InputError where it cannot be read.
    """
    if not is_in_bucket(path):
        return path
    from pyarrow import fs

    try:
        files, root = _bucket(path)
        found = [i for i in files.get_file_info(fs.FileSelector(root, recursive=True)) if i.type == fs.FileType.File]
        content = sorted((info.path, info.size, str(info.mtime)) for info in found)
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raysft"
        folder = place / sha256(repr((path, content)).encode()).hexdigest()[:16]
        if not folder.exists():
            place.mkdir(parents=True, exist_ok=True)
            temporary = Path(mkdtemp(dir=place))
            for info in found:
                _get(files, info.path, temporary / Path(info.path).relative_to(root))
            with suppress(OSError):  # another process was faster
                temporary.rename(folder)
            shutil.rmtree(temporary, ignore_errors=True)
        return str(folder)
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {_first_line(error)}.", FIX) from None
