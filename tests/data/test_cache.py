import json
from pathlib import Path
from typing import Any

import pytest

from raysft.data import cache
from raysft.data.cache import ensure
from raysft.errors import InputError


class Writer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "content").write_text("four")
        return {"call": self.calls}


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    write = Writer()
    folder = tmp_path / "cache" / "abc"
    assert ensure(folder, write) == {"call": 1}
    assert ensure(folder, write) == {"call": 1}
    assert (folder / "content").read_text() == "four"
    assert [p.name for p in folder.parent.iterdir()] == ["abc"]


def test_damage_is_noticed_and_mended(tmp_path: Path) -> None:
    write = Writer()
    folder = tmp_path / "abc"
    manifest = folder / "manifest.json"

    def delete_file() -> None:
        (folder / "content").unlink()

    def cut_file() -> None:
        (folder / "content").write_text("fo")

    def cut_manifest() -> None:
        manifest.write_text(manifest.read_text()[:-5])

    def other_manifest() -> None:
        manifest.write_text(json.dumps([]))

    def delete_manifest() -> None:
        manifest.unlink()

    ensure(folder, write)
    for calls, damage in enumerate((delete_file, cut_file, cut_manifest, other_manifest, delete_manifest), start=2):
        damage()
        assert ensure(folder, write) == {"call": calls}
        assert (folder / "content").read_text() == "four"
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "content").write_text("half")
        raise InputError("here", "no")

    with pytest.raises(InputError, match="here: no"):
        ensure(tmp_path / "abc", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    late = Writer()

    def overtaken(temporary: Path) -> dict[str, Any]:
        ensure(folder, Writer())
        (temporary / "content").write_text("late")
        return {"call": 99}

    assert ensure(folder, overtaken) == {"call": 1}
    assert (folder / "content").read_text() == "four"
    assert ensure(folder, late) == {"call": 1}
    assert late.calls == 0
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]


def test_what_another_process_has_just_finished_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, looked, other = tmp_path / "abc", cache._intact, Writer()

    def overtaken(asked: Path) -> dict[str, Any] | None:
        facts = looked(asked)
        monkeypatch.setattr(cache, "_intact", looked)
        ensure(folder, other)  # between this process's look and its next move
        return facts

    monkeypatch.setattr(cache, "_intact", overtaken)
    file = folder / "content"
    assert ensure(folder, lambda _: {"inode": file.stat().st_ino}) == {"call": 1}
    assert other.calls == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written: .*Free space there, or choose another"):
        ensure(tmp_path / "file" / "abc", Writer())
