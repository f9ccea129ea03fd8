"""Files, names and links of others' making: none runs a program, which would leave a canary, and none leads what is
written out of the output folder."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from raysft.backbone import load_model, load_tokenizer
from raysft.check import check
from raysft.config import FileSource, HubSource, Job, SweepConfig, TrackingConfig, TrialConfig
from raysft.data.rows import read_rows
from raysft.errors import InputError, TrialFailed
from raysft.inprocess import bench_here
from raysft.modelscores import scores_folder
from raysft.objectives import Power
from raysft.progress import Progress
from raysft.report import _beside
from raysft.sweep.driver import sweep
from raysft.sweepfile import load, load_tasks, validated
from raysft.targets import place_of
from raysft.training.checkpoint import MANIFEST
from raysft.yamltext import write

Make = Callable[..., SweepConfig]

pytestmark = pytest.mark.faults


class Canary:
    """A file that appears where a program ran. Pickled, it makes whoever loads the pickle write it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")

    @property
    def code(self) -> str:
        return f"open({str(self.path)!r}, 'w').close()\n"

    @property
    def sang(self) -> bool:
        return self.path.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    canary = Canary(tmp_path / "canary")
    pickle.loads(pickle.dumps(canary)).close()
    assert canary.sang, "it would not be heard"
    canary.path.unlink()
    return canary


# --- backbones --------------------------------------------------------------------------------------------------------


def pickled_beside(folder: Path, canary: Canary) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(canary))


def pickled_instead(folder: Path, canary: Canary) -> None:
    (folder / "model.safetensors").unlink()
    pickled_beside(folder, canary)


def pickled_by_index(folder: Path, canary: Canary) -> None:
    """An index of safetensors that names a pickle."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    pickled_beside(folder, canary)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled_adapter(folder: Path, canary: Canary) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "."}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(canary))


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def own_model(folder: Path, canary: Canary, **changes: Any) -> None:
    (folder / "modeling_own.py").write_text(canary.code)
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    changed(folder / "config.json", auto_map=classes, **changes)


def own_unknown_model(folder: Path, canary: Canary) -> None:
    own_model(folder, canary, model_type="own", architectures=["Own"])


def own_tokenizer(folder: Path, canary: Canary, **changes: Any) -> None:
    (folder / "tokenization_own.py").write_text(canary.code)
    classes = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    changed(folder / "tokenizer_config.json", auto_map=classes, **changes)


def own_unknown_tokenizer(folder: Path, canary: Canary) -> None:
    own_tokenizer(folder, canary, tokenizer_class="OwnTokenizer")


def program_in_chat_template(folder: Path, canary: Canary) -> None:
    code = canary.code.strip()
    (folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.system('touch " + str(canary.path) + "') }}"
        "{{ messages.__class__.__base__.__subclasses__() }}{{ self.__init__.__globals__.__builtins__.exec("
        + repr(code)
        + ") }}"
    )


BACKBONES = {
    pickled_beside: "",
    pickled_instead: "no weights in *.safetensors",
    pickled_by_index: "has weights in a pickle",
    pickled_adapter: "cannot be loaded",
    own_model: "",
    own_unknown_model: "set trust_remote_code",
    own_tokenizer: "",
    own_unknown_tokenizer: "set trust_remote_code",
    program_in_chat_template: "chat template",
}


@pytest.mark.parametrize(("spoil", "reason"), BACKBONES.items(), ids=[spoil.__name__ for spoil in BACKBONES])
def test_no_backbone_runs_a_program(
    spoil: Callable[[Path, Canary], None],
    reason: str,
    canary: Canary,
    make_config: Make,
    tiny_backbone: Path,
    tmp_path: Path,
) -> None:
    """It is refused, or loaded by the libraries' own code from safetensors (reason: none)."""
    folder = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    spoil(folder, canary)
    template = "chat" if spoil is program_in_chat_template else "plain"
    config = make_config(backbones=[{"name": "tiny", "path": str(folder)}], data={"template": template})
    said = ""
    try:
        check(config)
        bench_here(config.for_backbone("tiny"))
    except InputError as error:
        said = str(error)
    assert reason in said
    assert bool(said) == bool(reason)
    for loader in (load_model, load_tokenizer):
        with suppress(InputError):
            loader(config.backbones[0])
    assert not canary.sang


# --- data -------------------------------------------------------------------------------------------------------------


def script(folder: Path, canary: Canary) -> dict[str, Any]:
    """A data set's own loading script, beside its rows."""
    (folder / f"{folder.name}.py").write_text(canary.code)
    (folder / "train.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    return {"path": str(folder)}


def script_alone(folder: Path, canary: Canary) -> dict[str, Any]:
    (folder / f"{folder.name}.py").write_text(canary.code)
    return {"path": str(folder)}


def script_itself(folder: Path, canary: Canary) -> dict[str, Any]:
    (folder / "own.py").write_text(canary.code)
    return {"path": str(folder / "own.py")}


def pickles(folder: Path, canary: Canary) -> dict[str, Any]:
    for ending in ("pkl", "pickle", "pt", "pth", "bin", "npy"):
        (folder / f"train.{ending}").write_bytes(pickle.dumps(canary))
    return {"path": str(folder)}


def a_pickle(folder: Path, canary: Canary) -> dict[str, Any]:
    pickles(folder, canary)
    return {"path": str(folder), "file": "train.pkl"}


def a_frame(folder: Path, canary: Canary) -> dict[str, Any]:
    """The library's own reader of pickled frames, by its name."""
    pickles(folder, canary)
    return {"path": "pandas", "file": str(folder / "train.pkl")}


def an_archive(folder: Path, canary: Canary) -> dict[str, Any]:
    """A tar of samples, whose members the library decodes by their endings."""
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name in ("0.pth", "0.pyd", "0.pickle", "0.npy", "0.npz"):
            content = pickle.dumps(canary)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"path": str(folder)}


DATA = [script, script_alone, script_itself, pickles, a_pickle, a_frame, an_archive]


@pytest.mark.parametrize("make", DATA, ids=[make.__name__ for make in DATA])
def test_no_data_set_runs_a_program(
    make: Callable[[Path, Canary], dict[str, Any]], canary: Canary, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    source = HubSource.model_validate(make(folder, canary))
    with pytest.raises(InputError, match="cannot be loaded"):
        read_rows(source)
    assert not canary.sang


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pt", "bin", "npy", "py"])
def test_a_file_of_another_kind_is_no_data(ending: str, canary: Canary, tmp_path: Path) -> None:
    path = tmp_path / f"train.{ending}"
    path.write_bytes(pickle.dumps(canary))
    with pytest.raises(InputError, match="must end in"):
        validated(FileSource, {"path": str(path)}, "data.train")
    for name in ("train.jsonl", "train.json", "train.parquet"):  # by another name
        renamed = path.rename(tmp_path / name)
        with pytest.raises(InputError):
            read_rows(FileSource(path=renamed))
        path = renamed
    assert not canary.sang


@pytest.mark.parametrize("read", [load, lambda path: load_tasks([str(path)])], ids=["sweep", "task"])
def test_no_file_of_settings_runs_a_program(read: Callable[[Path], Any], canary: Canary, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    for tag in ("python/object/apply:builtins.open", "python/object/new:builtins.open"):
        path.write_text(f"name: !!{tag} [{canary.path}, w]\n")
        with pytest.raises(InputError, match="Tags"):
            read(path)
    assert not canary.sang


# --- checkpoints ------------------------------------------------------------------------------------------------------


def with_fitting_manifest(folder: Path) -> None:
    """As checkpoint.save describes the files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}
    found = {name: [p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for name, p in files.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": found}))


def torch_zip(canary: Canary) -> bytes:
    """The canary as torch.save writes it."""
    content = io.BytesIO()
    torch.save(canary, content)
    return content.getvalue()


@pytest.mark.parametrize("written", [pickle.dumps, torch_zip])
def test_no_checkpoint_runs_a_program(
    written: Callable[[Canary], bytes], canary: Canary, make_config: Make, tmp_path: Path
) -> None:
    trial = TrialConfig(objective=Power(), learning_rate=1e-3, seed=0)
    job = Job("a", trial, tmp_path / "trial")
    bench = bench_here(make_config())
    assert bench.run(job, stop=lambda: "save").status == "saved"
    (saved,) = (tmp_path / "trial" / "checkpoints").glob("step-*")
    (saved / "plain.pt").write_bytes(written(canary))
    with_fitting_manifest(saved)
    with pytest.raises(TrialFailed, match=r"else than a checkpoint and was not loaded: .*Unpickler error"):
        bench.run(job)
    assert not canary.sang
    shutil.rmtree(saved)
    assert bench.run(job).status == "finished", "the bench is as usable as before"


ZERO = """
import json, shutil, sys
from pathlib import Path
import torch.distributed as dist
from raysft.config import Job, SweepConfig, TrialConfig
from raysft.errors import TrialFailed
from raysft.objectives import Power
from raysft.quiet import libraries_quiet

libraries_quiet()
folder, canary = Path(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
import torch
from raysft.ranks import Ranks
from raysft.training import checkpoint
from raysft.trial import Bench

for stage, config in json.loads(sys.argv[3]).items():
    bench = Bench(SweepConfig.model_validate(config), "zero", Ranks(), torch.device("cpu"))
    job = Job("a", TrialConfig(objective=Power(), learning_rate=1e-3, seed=0), folder / stage)
    assert bench.run(job, stop=lambda: "save").status == "saved"
    (saved,) = job.folder.glob("checkpoints/step-*")
    for file in sorted(saved.rglob("*.pt")):
        kept = file.read_bytes()
        shutil.copy(canary, file)
        manifest = json.loads((saved / "manifest.json").read_text()) | {"files": checkpoint._describe(saved)}
        (saved / "manifest.json").write_text(json.dumps(manifest))
        try:
            bench.run(job)
            print(stage, "ran")
        except TrialFailed as error:
            print(stage, "refused" if "holds something else than a checkpoint" in str(error) else error)
        file.write_bytes(kept)
    manifest = manifest | {"files": checkpoint._describe(saved)}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    print(stage, bench.run(job).status)
"""


@pytest.mark.slow
def test_no_checkpoint_of_deepspeed_runs_a_program(canary: Canary, make_config: Make, tmp_path: Path) -> None:
    """Each file of it in turn; in a process of its own, because DeepSpeed wants a process group."""
    configs = {stage: make_config(zero={"stage": stage}).model_dump(mode="json") for stage in (0, 1, 3)}
    (tmp_path / "canary.pt").write_bytes(torch_zip(canary))
    command = [sys.executable, "-c", ZERO, str(tmp_path), str(tmp_path / "canary.pt"), json.dumps(configs)]
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    said = [line for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 ", "3 ")]
    assert said == [
        *("0 refused", "0 finished"),
        *("1 refused", "1 refused", "1 finished"),
        *("3 refused", "3 refused", "3 finished"),
    ], done.stderr
    assert not canary.sang


# --- names and links --------------------------------------------------------------------------------------------------

PATHS = [
    "../x",
    "..",
    ".",
    "/x",
    "a/b",
    "a/../../x",
    "..\\x",
    "C:\\x",
    "C:x",
    "x\0",
    "x\n",
    ".x",
    "-x",
    "x.",
    "x..",
    "~",
    "",
]
PATHS += [
    "~root",
    "$HOME",
    "x" * 101,
    "x" * 5000,
    "\u00e9",
    "\u202ex",
    "\uff0e\uff0e/x",
    "a\u2215b",
    "%2e%2e%2fx",
    "a:b",
]
NAMES = {
    "sweep": lambda name: {"name": name},
    "backbone": lambda name: {"backbones": [{"name": name, "path": "a/b"}]},
    "registered": lambda name: {"tracking": {"register_as": name}},
    "task": lambda name: {"evaluation": {"tasks": {name: {"source": {"kind": "hub", "path": "a/b"}}}}},
    "revision": lambda name: {"backbones": [{"name": "b", "path": "a/b", "revision": name}]},
    "output": lambda name: {"output": name},
}
HARMLESS = {
    "revision": {name for name in PATHS if not re.search(r"\.\.|^/|\\|\0", name)},  # the hub says what it has
    "output": set(PATHS) - {"x\0"},  # any folder may be named
}


@pytest.mark.parametrize("of", NAMES)
def test_no_name_is_a_path(of: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    values = {
        "name": "s",
        "backbones": [{"name": "b", "path": "a/b"}],
        "data": {"train": {"kind": "hub", "path": "a/b"}},
        "search": {"metric": "eval/nll"},
    }
    path.write_text(write(values))
    assert load(path)
    for name in PATHS:
        changes = NAMES[of](name)
        path.write_text(write(values | changes))
        if name in HARMLESS.get(of, ()):
            load(path)
            continue
        with pytest.raises(InputError):
            load(path)
        if "\0" not in name:
            path.write_text(write(values))
            with pytest.raises(InputError):
                load(path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


@pytest.mark.parametrize("key", ["../x", "a/../x", "a//b", "a/.", "/a", "a/", "..", "a\\b", "a\0", "a" * 101])
def test_no_tag_is_a_path(key: str) -> None:
    with pytest.raises(InputError, match=r"tracking|tags"):
        validated(TrackingConfig, {"tags": {key: "x"}}, "tracking")


LINKS = {
    "the sweep": "tiny",
    "the study": "tiny/tiny",
    "its trials": "tiny/tiny/trials",
    "a trial": "tiny/tiny/trials/0000",
    "checkpoints": "tiny/tiny/trials/0000/checkpoints",
    "a model": "tiny/tiny/trials/0000/model",
    "the cache": "cache",
    "artifacts": "mlartifacts",
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_no_link_leads_out_of_the_output_folder(link: str, make_config: Make, tmp_path: Path) -> None:
    """By no command, and not by a resume; a link within the folder may be there."""
    config = make_config()
    outside, inside, at = tmp_path / "outside", config.output / "elsewhere", config.output / link
    for target in (outside, inside):
        target.mkdir(parents=True)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(outside, target_is_directory=True)
    for run in (lambda: check(config), lambda: sweep(config, Progress(Console()), resume=True)):
        with pytest.raises(InputError, match=rf"leads to {outside}, out of {config.output}") as refused:
            run()
        assert refused.value.place.endswith(link)
    assert list(outside.iterdir()) == []
    at.unlink()
    at.symlink_to(inside, target_is_directory=True)
    assert check(config)


@pytest.mark.parametrize("file", ["tiny/tiny/trials/0000/metrics.jsonl", "tiny/raysft.log", "mlflow.db"])
def test_no_file_is_a_link_out_of_the_output_folder(file: str, make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    at = config.output / file
    at.parent.mkdir(parents=True)
    at.symlink_to(tmp_path / "not-there-yet")
    with pytest.raises(InputError, match="leads to"):
        check(config)
    assert not (tmp_path / "not-there-yet").exists()


def test_the_output_itself_may_be_a_link(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert check(make_config())


def test_a_report_stays_with_its_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of a server may have any name; a folder's `report` may be a link."""
    monkeypatch.chdir(tmp_path)
    for name in ("/etc/x", "../../x", "a/b"):
        folder = place_of(name, "http://127.0.0.1:9").folder.resolve()
        assert folder.parent == tmp_path / "runs"
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "report").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="leads to"):
        _beside(tmp_path / "runs")


@pytest.mark.parametrize("model", [".", "..", "/"])
def test_scores_of_a_folder_lie_under_its_own_name(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "models" / "mine"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    folder = scores_folder(Path("runs"), model).resolve()
    assert folder.parent == here / "runs" / "evaluation"
