"""Checkpoints that are published whole, kept in pairs, and passed over when they are damaged."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import Job, SweepConfig, TrialConfig
from raysft.errors import TrialFailed
from raysft.inprocess import bench_here
from raysft.objectives import Power
from raysft.ranks import Ranks
from raysft.store import Store
from raysft.training.checkpoint import MANIFEST, latest, save
from tests.conftest import fill

Make = Callable[..., SweepConfig]
IDENTITY = {"config": "abc", "data": {"train": "x", "heldout": "y"}}


def write(folder: Path) -> None:
    """Two files, one of them in a folder as DeepSpeed writes it."""
    (folder / "state.pt").write_bytes(random.Random(folder.name).randbytes(200))
    (folder / "zero").mkdir()
    (folder / "zero" / "rank0.pt").write_bytes(b"shard" * 10)


def publish(root: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save(Store(root), step, IDENTITY, Ranks(), write, keep)


def found(root: Path, identity: dict[str, object] = IDENTITY) -> tuple[int, str] | None:
    result = latest(Store(root), identity, Ranks())
    return result and (result.step, result.folder.name)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_nothing_is_found_where_nothing_was_written(tmp_path: Path) -> None:
    assert found(tmp_path / "missing") is None
    assert found(tmp_path) is None


def test_the_newest_is_found_with_its_files(tmp_path: Path) -> None:
    publish(tmp_path, 2, 10)
    assert found(tmp_path) == (10, "step-00000010")
    folder = tmp_path / "step-00000010"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["step"] == 10
    assert {name: size for name, (size, _) in manifest["files"].items()} == {"state.pt": 200, "zero/rank0.pt": 50}
    assert IDENTITY.items() <= manifest.items()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2, 9, 10, 100)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    publish(tmp_path, 101, keep=1)
    assert names(tmp_path) == ["step-00000101"]


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    publish(tmp_path, 4)
    (tmp_path / "step-00000004" / "stray").write_text("from another life")
    publish(tmp_path, 4)
    assert names(tmp_path) == ["step-00000004"]
    assert not (tmp_path / "step-00000004" / "stray").exists()
    assert found(tmp_path) == (4, "step-00000004")


def test_a_write_that_breaks_publishes_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    def breaks(folder: Path) -> None:
        write(folder)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    publish(tmp_path, 2)
    with pytest.raises(OSError, match="Disk quota exceeded"):
        save(Store(tmp_path), 4, IDENTITY, Ranks(), breaks, 2)
    assert [name for name in names(tmp_path) if name.startswith("step")] == ["step-00000002"]
    assert found(tmp_path) == (2, "step-00000002")
    publish(tmp_path, 4)  # over what the broken write left
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    assert found(tmp_path) == (4, "step-00000004")


def flip(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.pt").unlink(),
        lambda folder: (folder / "zero" / "rank0.pt").unlink(),
        lambda folder: shutil.rmtree(folder / "zero"),
        lambda folder: (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-1]),
        lambda folder: flip(folder / "state.pt", 100),
        lambda folder: (folder / "one-more.pt").write_bytes(b""),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text(""),
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-5]),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"),
        lambda folder: shutil.copy(folder.with_name("step-00000002") / MANIFEST, folder / MANIFEST),
        lambda folder: folder.rename(folder.with_name("step-00000009")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 2, 4)
    damage(tmp_path / "step-00000004")
    assert found(tmp_path) == (2, "step-00000002")
    assert "is damaged; going back to the checkpoint before it" in caplog.text
    shutil.rmtree(tmp_path / "step-00000002")
    assert found(tmp_path) is None


@pytest.mark.faults
def test_a_file_that_is_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    publish(tmp_path, 2, 4)
    folder, draw = tmp_path / "step-00000004", random.Random(0)
    for name in ("state.pt", "zero/rank0.pt", MANIFEST):
        whole = (folder / name).read_bytes()
        for at in draw.sample(range(len(whole)), min(len(whole), 100)):
            (folder / name).write_bytes(whole[:at])
            assert found(tmp_path) == (2, "step-00000002"), (name, at)
        (folder / name).write_bytes(whole)
    assert found(tmp_path) == (4, "step-00000004")


@given(st.sampled_from(["state.pt", "zero/rank0.pt", MANIFEST]), st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, position: int, bit: int
) -> None:
    """Found as it was (white space between the manifest's values), passed over, or refused; never another step."""
    root = tmp_path_factory.mktemp("flip")
    publish(root, 2, 4)
    flip(root / "step-00000004" / name, position, bit)
    try:
        result = found(root)
    except TrialFailed:
        assert name == MANIFEST
        return
    if result == (4, "step-00000004"):
        manifest = json.loads((root / "step-00000004" / MANIFEST).read_text())
        assert IDENTITY.items() <= manifest.items()
        assert name == MANIFEST
    else:
        assert result == (2, "step-00000002")


@pytest.mark.parametrize("key", list(IDENTITY))
def test_another_identity_is_refused(tmp_path: Path, key: str) -> None:
    publish(tmp_path, 2)
    with pytest.raises(TrialFailed, match=f"step-00000002 was written with {key} .*, but this run has other"):
        found(tmp_path, IDENTITY | {key: "other"})
    with pytest.raises(TrialFailed, match="was written with engine None"):
        found(tmp_path, IDENTITY | {"engine": "zero"})


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("leaving", [0, 4096, 50_000, 150_000, 200_000])
def test_a_full_disk_keeps_the_checkpoint_before(
    make_config: Make, small_disk: Path, tmp_path: Path, leaving: int
) -> None:
    """It fills when the second of three checkpoints is due; with space again the trial goes on, bitwise."""
    bench = bench_here(make_config())
    trial = TrialConfig(objective=Power(), learning_rate=3e-3, seed=0)
    bench.run(Job("whole", trial, tmp_path / "whole"))
    folder = small_disk / "trial"
    ballast: list[Path] = []

    def stop() -> None:
        if (folder / "checkpoints" / "step-00000002").exists() and not ballast:
            ballast.append(fill(small_disk, leaving))

    with pytest.raises(OSError, match="space"):
        bench.run(Job("trial", trial, folder), stop=stop)
    assert names(folder / "checkpoints") == ["step-00000002"]
    ballast[0].unlink()
    assert bench.run(Job("trial", trial, folder)).status == "finished"
    assert losses(folder) == losses(tmp_path / "whole")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.faults
def test_torchs_own_writer_is_told_as_a_disk_that_is_full(small_disk: Path) -> None:
    def too_much(folder: Path) -> None:
        torch.save(torch.zeros(8 << 20), folder / "state.pt")

    publish(small_disk, 2)
    with pytest.raises(OSError, match=r"step-00000004 cannot be written to .*disk .*, where \d+\.\d MiB were free"):
        save(Store(small_disk), 4, IDENTITY, Ranks(), too_much, 2)
    assert names(small_disk) == ["step-00000002"]
    assert found(small_disk) == (2, "step-00000002")


# --- in a bucket ----------------------------------------------------------------------------------------------------


def test_what_a_kill_left_in_a_bucket_takes_no_checkpoints_place(tmp_path: Path, bucket: str) -> None:
    """Files of step 3 without a manifest lie between two whole checkpoints, of which both are kept."""
    store = Store(tmp_path / "trial", bucket)
    save(store, 2, IDENTITY, Ranks(), write, 2)
    half = store.folder / "step-00000003" / "state.pt"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    store.push(half)
    found_here = latest(store, IDENTITY, Ranks())
    assert found_here is not None
    assert found_here.step == 2
    save(store, 4, IDENTITY, Ranks(), write, 2)
    assert store.names(store.folder) == ["step-00000002", "step-00000004"]
    store.remove(store.folder / "step-00000004" / MANIFEST)
    found_here = latest(store, IDENTITY, Ranks())
    assert found_here is not None
    assert found_here.step == 2
