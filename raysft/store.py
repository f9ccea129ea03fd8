"""Where the files of a sweep are kept: in its output folder, or in a bucket of which each machine copies what it needs.

A shared folder needs nothing of this. A bucket (S3, Google Cloud Storage, Azure) has no renaming and no appending, but
an object is there whole or not at all; so a file is written on the machine first and put into the bucket as it is.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raysft.errors import InputError
from raysft.publish import publish

PROBE = ".raysft-was-here"


@dataclass(frozen=True)
class Store:
    """A folder of this machine. uri: of the place in a bucket that holds the same; None where the folder is shared.

    Paths are below the folder. Without a uri, pushing and pulling do nothing.
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

        files, place = self._place(path)
        fs.copy_files(str(path), place, destination_filesystem=files)

    def pull(self, path: Path, but: Collection[str] = ()) -> None:
        """Get a file, or all files of a folder, as the bucket has them now; what is not there is removed.

        but: names of folders on the way that are left out.
        """
        if self.uri is None:
            return
        from pyarrow import fs

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

        files, place = self._place(folder)
        return sorted(info.base_name for info in files.get_file_info(fs.FileSelector(place, allow_not_found=True)))

    def _place(self, path: Path) -> tuple[Any, str]:
        """The bucket's file system, and the path's place in it."""
        files, root = _bucket(str(self.uri))
        below = path.relative_to(self.folder).as_posix()
        return files, root if below == "." else f"{root}/{below}"


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
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"storage {uri}",
            f"cannot be used: {reason}.",
            "Check its name and region, and this machine's rights (AWS_PROFILE, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the machine's own role).",
        ) from None
