"""Files that are whole or not there, on a disk that fills and under a writer that is killed."""

import errno
from pathlib import Path

import pytest

from raysft.publish import append, publish
from tests.conftest import fill


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "end.json"
    publish(path, "one")
    publish(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["end.json"]


@pytest.mark.faults
def test_on_a_full_disk_the_file_before_stays(small_disk: Path) -> None:
    path = small_disk / "end.json"
    publish(path, "one")
    fill(small_disk, leaving=4096)
    with pytest.raises(OSError, match=r"No space left on device: '.*/end.json'") as caught:
        publish(path, "two" * 4096)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "one"
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["ballast", "end.json"]


@pytest.mark.faults
@pytest.mark.parametrize("leaving", [0, 4096, 8192])
def test_lines_that_the_disk_does_not_hold_leave_no_piece(small_disk: Path, leaving: int) -> None:
    """A piece of a line would join with the next one that is written, once there is space."""
    path = small_disk / "metrics.jsonl"
    append(path, "one\n")
    ballast = fill(small_disk, leaving)
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.jsonl'"):
        append(path, "a long line\n" * 2000)
    assert path.read_text() == "one\n"
    ballast.unlink()
    append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
