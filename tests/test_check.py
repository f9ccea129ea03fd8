"""What a sweep would run, against numbers worked out by hand and against checkpoints that were written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft.check import CHECKPOINTS, BackbonePlan, _size, check, describe
from raysft.config import Job, SweepConfig, TrialConfig
from raysft.errors import InputError
from raysft.inprocess import bench_here
from raysft.objectives import Power

Make = Callable[..., SweepConfig]

# The tiny backbone: 44 characters x 32; a layer of 4 attention and 3 feed-forward matrices and 2 norms; a last norm.
PARAMETERS = 44 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
# LoRA of rank 2 adds 2 x (inputs + outputs) to each of these matrices.
LORA = 2 * (4 * 2 * (32 + 32) + 3 * 2 * (32 + 64))


def only(config: SweepConfig) -> BackbonePlan:
    (backbone,) = check(config).backbones
    return backbone


# --- trials, steps, tokens ------------------------------------------------------------------------------------------


def test_a_plan_worked_out_by_hand(make_config: Make) -> None:
    """64 samples; 6 steps of 8 samples of at most 64 tokens; four baselines and one searched."""
    config = make_config()
    plan = check(config)
    assert (plan.name, plan.folder) == ("tiny", config.output / "tiny")
    (backbone,) = plan.backbones
    assert (backbone.baselines, backbone.searched, backbone.trials) == (4, 1, 5)
    assert (backbone.samples, backbone.steps, backbone.tokens) == (64, 6, 6 * 8 * 64)
    assert (backbone.workers, backbone.resources, backbone.at_once) == (1, {"CPU": 1}, None)
    assert backbone.export_bytes == 4 * PARAMETERS
    assert not config.output.exists()


def test_a_grid_is_counted_without_what_the_baselines_are(make_config: Make) -> None:
    space = {"exponent": {"low": 0.1, "high": 1, "step": 0.1}, "learning_rate": None}
    whole = make_config(space=space, search={"sampler": "grid", "trials": None}, export="all", confirm={"seeds": 2})
    plan = only(whole)
    assert (plan.baselines, plan.searched, plan.grid, plan.confirming, plan.trials) == (4, 9, 9, 10, 23)
    assert plan.export_bytes == 23 * 4 * PARAMETERS
    assert dict(describe(check(whole)))["  trials"] == "23 (4 baselines, 9 searched, at most 10 to confirm)"
    first = make_config(space=space, search={"sampler": "grid", "trials": 2})
    assert dict(describe(check(first)))["  trials"] == "6 (4 baselines, 2 searched of the grid's 9)"
    assert only(make_config()).grid is None


@pytest.mark.parametrize(
    ("training", "data", "samples", "steps"),
    [
        ({"steps": None}, {}, 64, 8),
        ({"steps": None, "epochs": 2.5}, {}, 64, 20),
        ({"steps": None}, {"train_samples": 20}, 20, 2),
        ({"steps": None}, {"train_samples": 5}, 5, 1),
        ({"steps": None}, {"heldout": None, "heldout_samples": 14}, 50, 6),
        ({"steps": None}, {"heldout": None, "heldout_samples": 14, "train_samples": 60}, 50, 6),
        ({"steps": 3}, {"train_samples": 20}, 20, 3),
    ],
)
def test_steps_follow_from_samples(
    make_config: Make, training: dict[str, Any], data: dict[str, Any], samples: int, steps: int
) -> None:
    config = make_config(data=data)
    config = make_config(data=data, training=config.training.model_dump() | training)
    backbone = only(config)
    assert (backbone.samples, backbone.steps, backbone.tokens) == (samples, steps, steps * 8 * 64)
    assert bench_here(config).steps == steps


def test_generated_data_are_counted_without_being_generated(make_config: Make) -> None:
    """The paper's figlet recipe: 40,000 / 256 = 156 whole batches."""
    gym = {"kind": "reasoning_gym", "task": "figlet_font", "size": 40_000}
    training = {"steps": None, "global_batch_size": 256}
    backbone = only(make_config(data={"train": gym, "heldout": gym, "max_length": 800}, training=training))
    assert (backbone.samples, backbone.steps, backbone.tokens) == (40_000, 156, 156 * 256 * 800)


def test_samples_that_cannot_be_read_are_left_out_of_the_plan(
    make_config: Make, additions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text((additions / "train.jsonl").read_text() + "{\n" * 16)
    source = {"kind": "file", "path": str(path)}
    training = {"steps": None, "global_batch_size": 8}
    with pytest.raises(InputError, match=r"train\.jsonl line 65: is not JSON"):
        check(make_config(data={"train": source}))
    plan = check(make_config(data={"train": source, "max_bad": 0.2}, training=training))
    (backbone,) = plan.backbones
    assert (backbone.samples, backbone.steps) == (64, 8)
    assert dict(describe(plan))["  left out"] == backbone.left_out[0]
    assert backbone.left_out[0].startswith(f"training data: 16 of 80 samples cannot be read. The first: {path} line 65")


def test_what_only_the_hub_knows_is_left_open(make_config: Make, tiny_backbone: Path) -> None:
    hub = {"kind": "hub", "path": "openai/gsm8k"}
    backbones = [{"name": "a", "path": "owner/model"}]
    by_epochs = only(make_config(backbones=backbones, data={"train": hub}, training={"steps": None}))
    assert (by_epochs.samples, by_epochs.steps, by_epochs.tokens) == (None, None, None)
    assert (by_epochs.checkpoint_bytes, by_epochs.export_bytes) == (None, None)
    by_steps = only(make_config(data={"train": hub}))
    assert (by_steps.samples, by_steps.steps, by_steps.tokens) == (None, 6, 6 * 8 * 64)
    assert by_steps.export_bytes == 4 * PARAMETERS
    assert only(make_config(data={"train": hub, "train_samples": 16}, training={"steps": None})).samples == 16


def test_each_backbone_is_planned_with_its_overrides(make_config: Make, tiny_backbone: Path) -> None:
    overrides = {
        "training": {"steps": 2, "precision": "bf16"},
        "data": {"train_samples": 32, "max_length": 16},
        "workers": {"count": 2, "resources": {"GPU": 0.5}, "max_concurrent": 3},
    }
    one = {"name": "one", "path": str(tiny_backbone)}
    config = make_config(
        backbones=[one, one | {"name": "two", "overrides": overrides}],
        baselines=[{"exponent": 1}, {"exponent": 3}],
        search={"trials": 6},
        export="all",
    )
    first, second = check(config).backbones
    assert (first.name, second.name) == ("one", "two")
    assert (first.trials, second.trials) == (5 + 6, 5 + 6)
    assert (first.samples, second.samples) == (64, 32)
    assert (first.tokens, second.tokens) == (6 * 8 * 64, 2 * 8 * 16)
    assert (second.workers, second.resources, second.at_once) == (2, {"CPU": 1, "GPU": 0.5}, 3)
    assert (first.export_bytes, second.export_bytes) == (11 * 4 * PARAMETERS, 11 * 2 * PARAMETERS)
    assert only(make_config(export="none")).export_bytes == 0


def test_the_second_backbone_is_checked_too(make_config: Make, tiny_backbone: Path, additions: Path) -> None:
    one = {"name": "one", "path": str(tiny_backbone)}
    with pytest.raises(InputError, match=r"backbone 'two' \(.*tinny\): there is no such folder. Did you mean 'tiny'"):
        check(make_config(backbones=[one, {"name": "two", "path": str(tiny_backbone.with_name("tinny"))}]))
    overrides = {"data": {"train": {"path": str(additions / "trian.jsonl")}}}
    with pytest.raises(InputError, match=r"trian.jsonl: does not exist. Did you mean 'train.jsonl'"):
        check(make_config(backbones=[one, one | {"name": "two", "overrides": overrides}]))


def test_an_output_under_a_file_is_refused(make_config: Make, additions: Path) -> None:
    with pytest.raises(InputError, match=r"train.jsonl' is not a folder"):
        check(make_config(output=str(additions / "train.jsonl")))


# --- disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "stage", "expected"),
    [
        ({"precision": "fp32"}, 0, (4 + 8) * PARAMETERS),  # weights and two moments
        ({"precision": "fp32"}, 1, (4 + 4 + 8) * PARAMETERS),  # and ZeRO's own copy
        ({"precision": "bf16"}, 0, (2 + 4 + 8) * PARAMETERS),
        ({"precision": "bf16"}, 3, (2 + 4 + 8) * PARAMETERS),
        ({"precision": "bf16", "lora": {"rank": 2}}, 1, 2 * PARAMETERS + (4 + 8) * LORA),
        ({"precision": "fp32", "lora": {"rank": 2}}, 0, 4 * PARAMETERS + 8 * LORA),
    ],
)
def test_checkpoint_bytes_worked_out_by_hand(
    make_config: Make, training: dict[str, Any], stage: int, expected: int
) -> None:
    config = make_config(training=training | {"steps": 6, "global_batch_size": 8}, zero={"stage": stage})
    assert only(config).checkpoint_bytes == CHECKPOINTS * expected


def written(config: SweepConfig, folder: Path) -> Path:
    """The checkpoint folder of a plain trial that was stopped after its fifth step."""
    asked = iter([None, None, None, None, "save"])
    trial = TrialConfig(objective=Power(), learning_rate=1e-3, seed=0)
    result = bench_here(config).run(Job(folder.name, trial, folder), stop=lambda: next(asked))  # type: ignore[arg-type]
    assert (result.status, result.step) == ("saved", 5)
    return folder / "checkpoints"


def tensor_bytes(value: Any) -> int:
    """Of all tensors with more than one element in a nested state; a step count has one."""
    if isinstance(value, torch.Tensor):
        return value.nbytes if value.numel() > 1 else 0
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, inner))


def test_checkpoint_bytes_are_those_of_a_written_checkpoint(make_config: Make, tmp_path: Path) -> None:
    """Without ZeRO and in fp32 the plain loop writes just what is counted; the rest of the file is its frame."""
    config = make_config(zero={"stage": 0})
    checkpoints = written(config, tmp_path / "t")
    folders = sorted(checkpoints.iterdir())
    assert [folder.name for folder in folders] == ["step-00000004", "step-00000005"]
    planned = only(config).checkpoint_bytes
    assert planned is not None
    for folder in folders:
        state = torch.load(folder / "plain.pt", weights_only=True)
        assert tensor_bytes(state) == planned / CHECKPOINTS
        size = sum(file.stat().st_size for file in folder.iterdir())
        assert 1 <= size * CHECKPOINTS / planned < 1.15  # a frame of some 30 kB, which counts in a backbone so small


def test_checkpoint_bytes_count_what_lora_trains(make_config: Make, tmp_path: Path) -> None:
    """A plain checkpoint holds the adapters and their moments alone; the weights are counted for DeepSpeed's sake."""
    config = make_config()
    training = config.training.model_dump() | {"lora": {"rank": 2}}
    config = make_config(zero={"stage": 0}, training=training)
    newest = sorted(written(config, tmp_path / "t").iterdir())[-1]
    planned = only(config).checkpoint_bytes
    assert planned is not None
    state = torch.load(newest / "plain.pt", weights_only=True)
    assert tensor_bytes(state) == 12 * LORA
    assert tensor_bytes(state["optimizer"]) == planned / CHECKPOINTS - 4 * PARAMETERS


def test_export_bytes_are_those_of_an_exported_model(make_config: Make, tmp_path: Path) -> None:
    config = make_config(evaluation={}, search={"trials": 1, "metric": "eval/nll"})
    trial = TrialConfig(objective=Power(), learning_rate=1e-3, seed=0)
    bench_here(config).run(Job("t", trial, tmp_path / "t"), export=lambda metrics: True)
    weights = tmp_path / "t" / "model" / "model.safetensors"
    header = int.from_bytes(weights.read_bytes()[:8], "little")
    assert only(config).export_bytes == weights.stat().st_size - 8 - header


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_says_what_would_run(make_config: Make, tiny_backbone: Path) -> None:
    config = make_config(workers={"resources": {"CPU": 2, "GPU": 0.5}, "max_concurrent": 2})
    assert describe(check(config)) == [
        ("sweep", "tiny"),
        ("results in", str(config.output / "tiny")),
        ("trials", "5"),
        ("backbone tiny", str(tiny_backbone)),
        ("  trials", "5 (4 baselines, 1 searched)"),
        ("  trials at once", "at most 2"),
        ("  workers of a trial", "1 of 2 CPU + 0.5 GPU"),
        ("  training samples", "at most 64"),
        ("  steps of a trial", "at most 6"),
        ("  tokens of a trial", "at most 3,072"),
        ("  checkpoints of a trial", "at most 1.06 MB"),
        ("  exported models", "at most 88.2 kB"),
    ]


def test_the_table_says_what_is_not_known(make_config: Make) -> None:
    hub = {"kind": "hub", "path": "openai/gsm8k"}
    config = make_config(backbones=[{"name": "a", "path": "b/c"}], data={"train": hub}, training={"steps": None})
    table = dict(describe(check(config)))
    assert table["  trials at once"] == "as many as fit the cluster"
    assert table["  tokens of a trial"] == "known when the data are fetched"
    assert table["  exported models"] == "known when the weights are fetched"


@settings(deadline=None)
@given(st.integers(0, 10**17))
def test_sizes_are_three_digits_with_the_unit_that_fits(number: int) -> None:
    figure, unit = re.fullmatch(r"at most ([\d.]+) (B|kB|MB|GB|TB)", _size(number)).groups()  # type: ignore[union-attr]
    power = ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert float(figure) * 1000**power == pytest.approx(number, rel=0.005)
    assert float(figure) < 1000 or unit == "TB"
    assert float(figure) >= 1 or unit == "B"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (999_499, "999 kB"), (999_500, "1 MB"), (16_060_000_000, "16.1 GB")],
)
def test_sizes_round_into_the_next_unit(number: int, shown: str) -> None:
    assert _size(number) == f"at most {shown}"


def test_a_plan_reads_no_more_than_it_says(make_config: Make, tmp_path: Path) -> None:
    """Weights are not read: a header with the right length before zeros is enough."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [5, 7], "data_offsets": [0, 140]}}).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(140))
    assert only(make_config(backbones=[{"name": "m", "path": str(folder)}])).export_bytes == 140
