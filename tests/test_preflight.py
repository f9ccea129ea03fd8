"""What is refused before anything starts: output, backbones and data, each with its place and the way out."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from raysft.config import DataConfig, SweepConfig
from raysft.data.sources import draw
from raysft.errors import InputError
from raysft.preflight import Samples, _fields, _task_files, check_backbone, check_data, check_output

Make = Callable[..., SweepConfig]
GYM = {"kind": "reasoning_gym", "task": "figlet_font", "size": 20}


def refusal(call: Callable[[], Any]) -> InputError:
    with pytest.raises(InputError) as refused:
        call()
    return refused.value


def as_nobody(call: Callable[[], Any]) -> str:
    """What the call raises for a user who owns nothing here; root may write anywhere."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            call()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__} {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


# --- output ---------------------------------------------------------------------------------------------------------


def test_output_is_writable_where_its_nearest_folder_is(tmp_path: Path) -> None:
    check_output(tmp_path / "made" / "later")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["file", "file/runs", "file/runs/deeper"])
def test_output_under_a_file_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    error = refusal(lambda: check_output(tmp_path / inside))
    assert error.place == f"output {tmp_path / inside}"
    assert error.reason == f"'{tmp_path / 'file'}' is not a folder."
    assert error.fix == "Set output to another folder."


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    said = as_nobody(lambda: check_output(locked / "runs"))
    assert said.startswith(f"InputError output {locked / 'runs'}: '")
    assert said.endswith("' cannot be written to. Set output to another folder.")


# --- backbones ------------------------------------------------------------------------------------------------------


@pytest.fixture
def backbone(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone, to be damaged."""
    return shutil.copytree(tiny_backbone, tmp_path / "small")


def check_folder(make_config: Make, path: Path | str, template: str = "plain") -> Any:
    config = make_config(backbones=[{"name": "b", "path": str(path)}], data={"template": template})
    return check_backbone(config)


def test_shapes_are_those_of_the_model(make_config: Make, backbone: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(backbone)
    expected = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    assert check_folder(make_config, backbone) == expected


def test_hub_ids_are_taken_as_given(make_config: Make) -> None:
    for name in ("gpt2", "HuggingFaceTB/SmolLM2-135M", "_x/y-z.1"):
        assert check_folder(make_config, name) is None


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("{}/smal", "Did you mean 'small'?"),
        ("{}/nothing/like/it", "Give an existing folder, or a hub id of the form owner/name."),
        ("a/b/c", "Give an existing folder, or a hub id of the form owner/name."),
        ("runs/demo-materials/backbones/weak", "raysft demo --only-materials"),
        ("~/models/x", f"'~' is not expanded in a sweep file: write {Path.home()}/models/x."),
    ],
)
def test_a_missing_folder_is_refused(
    make_config: Make, backbone: Path, monkeypatch: pytest.MonkeyPatch, path: str, fix: str
) -> None:
    monkeypatch.chdir(backbone.parent)
    path = path.format(backbone.parent)
    error = refusal(lambda: check_folder(make_config, path))
    assert error.place == f"backbone 'b' ({path})"
    assert error.reason == "there is no such folder."
    assert fix in error.fix


def test_a_path_that_the_system_refuses_is_refused(make_config: Make, backbone: Path) -> None:
    assert refusal(lambda: check_folder(make_config, "x" * 5000)).reason == "cannot be read: File name too long."
    backbone.chmod(0)
    assert as_nobody(lambda: check_folder(make_config, backbone)).startswith("InputError backbone 'b'")
    backbone.chmod(0o700)


def test_a_folder_without_config_is_refused(make_config: Make, backbone: Path) -> None:
    (backbone / "config.json").unlink()
    error = refusal(lambda: check_folder(make_config, backbone))
    assert error.reason == "the folder has no config.json."
    assert error.fix == "Name a folder made by save_pretrained."
    (backbone / "adapter_config.json").write_text("{}")
    assert refusal(lambda: check_folder(make_config, backbone)).fix == "Merge the adapter into its base model first."


def test_a_folder_without_tokenizer_is_refused(make_config: Make, backbone: Path) -> None:
    (backbone / "tokenizer.json").unlink()
    error = refusal(lambda: check_folder(make_config, backbone))
    assert (error.place, error.reason) == (f"backbone 'b' ({backbone})", "the folder has no tokenizer.")
    assert "save_pretrained" in error.fix


def test_the_chat_template_must_be_there_where_it_is_used(make_config: Make, backbone: Path) -> None:
    error = refusal(lambda: check_folder(make_config, backbone, "chat"))
    assert "has no chat template" in error.reason
    assert "qwen, llama3, deepseek or plain" in error.fix
    (backbone / "chat_template.jinja").write_text("{{ messages }}")
    assert check_folder(make_config, backbone, "chat")
    (backbone / "chat_template.jinja").unlink()
    settings = json.loads((backbone / "tokenizer_config.json").read_text())
    (backbone / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert check_folder(make_config, backbone, "chat")


@pytest.mark.parametrize("kept", [0, 7, 400, -1])
def test_damaged_weights_are_refused(make_config: Make, backbone: Path, kept: int) -> None:
    file = backbone / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    error = refusal(lambda: check_folder(make_config, backbone))
    assert error.place == str(file)
    assert error.reason.startswith("is damaged: ")
    assert error.fix == "Copy or download it again."


def test_other_weights_than_safetensors_are_refused(make_config: Make, backbone: Path) -> None:
    (backbone / "model.safetensors").rename(backbone / "pytorch_model.bin")
    error = refusal(lambda: check_folder(make_config, backbone))
    assert error.reason == "the folder has no weights in *.safetensors."
    assert "save_pretrained" in error.fix


# --- data -----------------------------------------------------------------------------------------------------------


def data(train: dict[str, Any], **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"train": train} | settings)


def write_rows(path: Path, count: int = 10, answer: str = "response") -> dict[str, Any]:
    """A file source of rows with prompt and `answer`, in the format that its ending names."""
    rows = [{"prompt": f"{i}?", answer: f"{i}"} for i in range(count)]
    if path.suffix == ".parquet":
        columns = {key: [row[key] for row in rows] for key in ("prompt", answer)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return {"kind": "file", "path": str(path)}


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_rows_of_a_file_are_counted(tmp_path: Path, ending: str) -> None:
    train, heldout = write_rows(tmp_path / f"train.{ending}"), write_rows(tmp_path / f"heldout.{ending}", 3)
    assert check_data(data(train, heldout=heldout)).count == 10
    assert check_data(data(train, heldout=heldout, train_samples=4)).count == 4
    assert check_data(data(train, heldout=heldout, train_samples=40)).count == 10
    assert check_data(data(train, heldout_samples=3)).count == 7
    assert check_data(data(train, heldout_samples=3, train_samples=8)).count == 7


def test_generated_samples_are_counted_and_hub_data_are_not_fetched() -> None:
    assert check_data(data(GYM, heldout=GYM)).count == 20
    assert check_data(data(GYM, heldout_samples=5)).count == 15
    hub = {"kind": "hub", "path": "openai/gsm8k"}
    assert check_data(data(hub)).count is None
    assert check_data(data(hub, train_samples=9)).count == 9


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_data_that_are_all_held_out_are_refused(tmp_path: Path, ending: str) -> None:
    train = write_rows(tmp_path / f"train.{ending}")
    assert check_data(data(train, heldout_samples=9)).count == 1
    error = refusal(lambda: check_data(data(train, heldout_samples=10)))
    assert error.place == train["path"]
    assert error.reason == "has 10 samples and 10 of them are held out: none is left to train on."
    assert "data.heldout_samples" in error.fix


def test_generated_data_that_are_all_held_out_are_refused() -> None:
    error = refusal(lambda: check_data(data(GYM)))
    assert error.place == "reasoning_gym figlet_font"
    assert error.reason == "has 20 samples and 256 of them are held out: none is left to train on."


@pytest.mark.parametrize(
    ("ending", "place"),
    [("jsonl", "train.jsonl line 1"), ("json", "train.json item 0"), ("parquet", "train.parquet row 0")],
)
def test_a_missing_field_is_refused_with_the_nearest(tmp_path: Path, ending: str, place: str) -> None:
    train = write_rows(tmp_path / f"train.{ending}", answer="respones")
    good = write_rows(tmp_path / f"good.{ending}")
    for settings in ({"train": train, "heldout": good}, {"train": good, "heldout": train}):
        error = refusal(partial(check_data, data(**settings)))
        assert error.place == str(tmp_path / place)
        assert error.reason == "field 'response' is missing."
        assert error.fix == "Did you mean 'respones'? The name is set with data.response."
    assert check_data(data(train, response="respones", heldout_samples=1)).count == 9
    error = refusal(lambda: check_data(data(train, messages="chat", heldout_samples=1)))
    assert "field 'chat' is missing." in str(error)
    assert "The name is set with data.messages." in error.fix


def test_a_broken_line_is_refused_with_its_number(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl")
    with open(train["path"], "a") as file:
        file.write('\n{"prompt": "p", "response"\n')
    assert refusal(lambda: check_data(data(train, heldout_samples=1))).place == f"{train['path']} line 11"


@pytest.mark.parametrize(("ending", "place"), [("jsonl", "line {}"), ("json", "item {}"), ("parquet", "row {}")])
def test_rows_that_cannot_be_read_are_refused_or_told(tmp_path: Path, ending: str, place: str) -> None:
    """Rows 3 and 7 of ten have no response; by the seed, row 3 is trained on and row 7 held out."""
    path = tmp_path / f"train.{ending}"
    train = write_rows(path)
    rows = [{"prompt": f"{i}?", "response": None if i in (3, 7) else f"{i}"} for i in range(10)]
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows))
    third, seventh = (f"{path} {place.format(row + (ending == 'jsonl'))}" for row in (3, 7))
    reason = "field 'response' is not text but null. Name a field that holds text."
    seed = next(seed for seed in range(99) if 7 in (held := draw(10, seed, 2)) and 3 not in held)
    held_out = data(train, heldout_samples=2, seed=seed)
    assert str(refusal(lambda: check_data(held_out))) == f"{third}: {reason}"
    found = check_data(held_out.model_copy(update={"max_bad": 0.5}))
    assert found == Samples(
        7,
        (
            f"training data: 1 of 8 samples cannot be read. The first: {third}: {reason} They are left out.",
            f"held-out data: 1 of 2 samples cannot be read. The first: {seventh}: {reason} They are left out.",
        ),
    )
    error = refusal(lambda: check_data(held_out.model_copy(update={"max_bad": 0.3})))
    assert (error.place, error.fix) == (str(path), "Mend them, or raise data.max_bad (now 0.3).")
    assert error.reason == f"1 of 2 samples cannot be read. The first: {seventh}: {reason}"


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_missing_or_empty_file_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"train.{ending}"
    train = write_rows(path, count=0)
    good = write_rows(tmp_path / f"good.{ending}")
    assert str(refusal(lambda: check_data(data(train, heldout=good)))) == f"{path}: holds no samples."
    assert str(refusal(lambda: check_data(data(good, heldout=train)))) == f"{path}: holds no samples."
    absent = {"kind": "file", "path": str(tmp_path / f"trian.{ending}")}
    error = refusal(lambda: check_data(data(absent, heldout=good)))
    assert str(error) == f"{absent['path']}: does not exist. Did you mean 'train.{ending}'?"


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    train = write_rows(path)
    path.write_bytes(path.read_bytes()[:-9])
    error = refusal(lambda: check_data(data(train, heldout_samples=1)))
    assert error.place == str(path)
    assert error.reason.startswith("is not a readable Parquet file: ")
    assert "\n" not in error.reason


def test_a_data_set_that_is_no_hub_id_is_refused() -> None:
    error = refusal(lambda: check_data(data({"kind": "hub", "path": "a/b/c"})))
    assert error.place == "data set 'a/b/c'"
    assert error.reason == "there is no such folder."


def test_an_unknown_task_or_parameter_is_refused_with_the_nearest() -> None:
    error = refusal(lambda: check_data(data(GYM | {"task": "figlet_fonts"})))
    assert str(error) == "reasoning_gym figlet_fonts: is not a task of reasoning-gym. Did you mean 'figlet_font'?"
    error = refusal(lambda: check_data(data(GYM | {"params": {"min_word_len": 2, "max_wrod_len": 5}})))
    assert str(error) == "reasoning_gym figlet_font: has no parameter 'max_wrod_len'. Did you mean 'max_word_len'?"
    assert check_data(data(GYM | {"params": {"max_word_len": 5}}, heldout=GYM)).count == 20
    error = refusal(lambda: check_data(data(GYM, heldout=GYM | {"task": "figlet"})))
    assert error.fix == "Did you mean 'figlet_font'?"


def test_tasks_and_parameters_read_from_source_are_those_of_the_package() -> None:
    from reasoning_gym.factory import DATASETS

    read = {task: _fields(*where) for task, where in _task_files().items()}
    assert read == {task: [f.name for f in fields(settings)] for task, (_, settings) in DATASETS.items()}
