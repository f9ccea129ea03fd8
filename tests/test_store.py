"""The bucket as a store that speaks S3 on loopback, and its copies on machines."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from raysft.check import check, describe
from raysft.checking import check_here
from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.inprocess import bench_here
from raysft.store import StorageLost, Store, check_storage
from raysft.sweepfile import absolute, dump


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def objects(uri: str) -> list[str]:
    files, root = fs.FileSystem.from_uri(uri)
    found = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{root}/") for info in found if info.type == fs.FileType.File)


@pytest.fixture
def here(bucket: str, tmp_path: Path) -> Store:
    return Store(tmp_path / "here", bucket)


@pytest.fixture
def there(bucket: str, tmp_path: Path) -> Store:
    """Another machine's."""
    return Store(tmp_path / "there", bucket)


def write(store: Store, name: str, text: str) -> Path:
    path = store.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_one_machine_publishes_another_gets(here: Store, there: Store, bucket: str) -> None:
    trial = here.below("sweep", "0001")
    trial.folder.mkdir(parents=True)
    trial.publish(trial.folder / "trial.json", "one")
    write(trial, "checkpoints/step-2/rank-0.pt", "weights")
    trial.push(trial.folder / "checkpoints")
    assert objects(bucket) == ["sweep/0001/checkpoints/step-2/rank-0.pt", "sweep/0001/trial.json"]
    there.pull(there.folder)
    assert tree(there.folder) == tree(here.folder)
    trial.publish(trial.folder / "trial.json", "two")
    other = there.below("sweep").below("0001")
    other.pull(other.folder / "trial.json")
    assert (other.folder / "trial.json").read_text() == "two"


def test_a_pull_brings_the_folder_to_what_the_bucket_has(here: Store, there: Store) -> None:
    write(here, "a/trial.json", "a")
    write(here, "a/model/weights", "w")
    here.push(here.folder)
    write(there, "b/trial.json", "of before")
    there.pull(there.folder, but=("model",))
    assert tree(there.folder) == {"a/trial.json": "a"}
    there.pull(there.folder / "nothing")
    assert not (there.folder / "nothing").exists()


def test_what_is_removed_is_gone_here_and_there(here: Store, there: Store, bucket: str) -> None:
    write(here, "a/end.json", "a")
    write(here, "a/checkpoints/step-1/x", "x")
    here.push(here.folder)
    here.remove(here.folder / "a" / "checkpoints")
    here.remove(here.folder / "a" / "end.json")
    here.remove(here.folder / "a" / "never")
    assert (tree(here.folder), objects(bucket)) == ({}, [])
    assert there.names(there.folder / "a") == []


def test_names_are_those_in_the_bucket(here: Store, there: Store) -> None:
    for step in (10, 9):
        write(here, f"step-{step:02d}/x", "x")
    here.push(here.folder)
    write(there, "step-11/x", "x")
    assert there.names(there.folder) == ["step-09", "step-10"]
    assert there.names(there.folder / "none") == []


def test_without_a_bucket_the_folder_is_all_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path).below("trials")
    assert (store.folder, store.uri) == (tmp_path / "trials", None)
    store.folder.mkdir()
    store.publish(store.folder / "a.json", "a")
    store.push(store.folder)
    store.pull(store.folder)
    assert store.names(store.folder) == ["a.json"]
    store.remove(store.folder / "a.json")
    assert store.names(store.folder) == []


def test_a_store_that_is_lost_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker or the driver has it: whatever is asked."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = Store(tmp_path, "s3://lost/runs")
    (tmp_path / "a").write_text("a")
    asked = [store.push, store.pull, store.remove, store.names]
    for ask in asked:
        with pytest.raises(StorageLost, match=r"^storage s3://lost/runs cannot be reached or written to: .*connect"):
            ask(tmp_path / "a")


def test_a_command_that_loses_its_store_ends_in_plain_words(
    make_config: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    file = tmp_path / "sweep.yaml"
    file.write_text(dump(make_config(storage="s3://lost/runs")))
    command = [sys.executable, "-m", "raysft", "train", str(file), "--in-process"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("What was written is whole, and a sweep goes on with --resume.")


def test_a_bucket_that_can_be_used_is_left_as_it_was(bucket: str) -> None:
    check_storage(None)
    check_storage(bucket)
    assert objects(bucket) == []


def test_a_bucket_that_is_not_there_is_refused(s3: str) -> None:
    with pytest.raises(InputError, match=r"storage s3://no-such-bucket/runs: cannot be used: .*Check its name"):
        check_storage("s3://no-such-bucket/runs")


def test_a_store_that_does_not_answer_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="storage s3://elsewhere/runs: cannot be used"):
        check_storage("s3://elsewhere/runs")


def put(store: Store, folder: Path, name: str) -> str:
    """The address of a copy in the bucket."""
    place = store.below(name)
    shutil.copytree(folder, place.folder)
    place.push(place.folder)
    return str(place.uri)


def test_a_sweep_reads_data_and_backbone_from_a_bucket(
    make_config: Callable[..., SweepConfig],
    here: Store,
    tiny_backbone: Path,
    additions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    backbone, data = put(here, tiny_backbone, "models/tiny"), put(here, additions, "data")
    train = {"kind": "file", "path": f"{data}/train.jsonl"}
    there = {"backbones": [{"name": "tiny", "path": backbone}], "data": {"train": train}}
    assert dict(describe(check(make_config(**there)))) == dict(describe(check(make_config()))) | {
        "backbone tiny": backbone
    }
    rows, _ = check_here(make_config(**there), None, None, 0.4, None)
    assert dict(rows)["  parameters"] == dict(check_here(make_config(), None, None, 0.4, None)[0])["  parameters"]
    bench = bench_here(absolute(make_config(**there)).for_backbone("tiny"))
    assert bench.data_facts() == bench_here(make_config().for_backbone("tiny")).data_facts()
    assert len(list((tmp_path / "home" / "raysft").iterdir())) == 1


def test_what_is_not_in_the_bucket_is_refused(make_config: Callable[..., SweepConfig], bucket: str) -> None:
    with pytest.raises(InputError, match=r"s3://.*/none\.jsonl: cannot be read: .*Check its name"):
        check(make_config(data={"train": {"kind": "file", "path": f"{bucket}/none.jsonl"}}))
    with pytest.raises(InputError, match=r"s3://.*/none: cannot be read"):
        check(make_config(backbones=[{"name": "tiny", "path": f"{bucket}/none"}]))
