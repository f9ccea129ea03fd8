"""The models of a sweep file: what they refuse, and what they derive."""

import json
import math
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from raysft.config import (
    METRIC_MODES,
    PAPER_BASELINES,
    AshaConfig,
    BackboneConfig,
    DataConfig,
    FileSource,
    GenerationConfig,
    HubSource,
    LoraConfig,
    Range,
    ReasoningGymSource,
    SearchConfig,
    SpaceConfig,
    SweepConfig,
    TrackingConfig,
    TrainingConfig,
    TrialConfig,
    WorkersConfig,
    ZeroConfig,
    bounds,
    config_hash,
    total_steps,
)
from raysft.objectives import Power, Selection, known

FILE = {"kind": "file", "path": "train.jsonl"}
FIGLET = {"kind": "reasoning_gym", "task": "figlet_font", "size": 8}


def sweep(**changes: Any) -> SweepConfig:
    """The smallest sweep, with sections replaced."""
    values = {
        "name": "s",
        "backbones": [{"name": "one", "path": "a/b"}],
        "data": {"train": FILE},
        "evaluation": {"generation": {}},
    }
    return SweepConfig.model_validate(values | changes)


# --- what is refused ------------------------------------------------------------------------------------------------


REFUSED: list[tuple[type[BaseModel], dict[str, Any], str]] = [
    (Power, {"exponent": math.nan}, "finite"),
    (Power, {"exponent": math.inf}, "finite"),
    (Power, {"threshold": 1.01}, "less than or equal to 1"),
    (Power, {"threshold": -0.01}, "greater than or equal to 0"),
    (Power, {"keep": "over"}, "'above' or 'below'"),
    (Power, {"type": "focal"}, "'power'"),
    (Range, {"low": 1, "high": 1}, r"low \(1\) must be below high \(1\)"),
    (Range, {"low": 0, "high": 1, "log": True}, "needs low > 0"),
    (Range, {"low": 1, "high": 2, "log": True, "step": 0.1}, "exclude each other"),
    (Range, {"low": 1, "high": 2, "step": 0}, "greater than 0"),
    (SpaceConfig, {"exponent": []}, "at least 1 item"),
    (SpaceConfig, {"keep": []}, "at least 1 item"),
    (SpaceConfig, {"threshold": {"low": 0.5, "high": 1.5}}, "between 0 and 1"),
    (SpaceConfig, {"threshold": [-0.1, 0.5]}, "between 0 and 1"),
    (SpaceConfig, {"threshold": 2}, "between 0 and 1"),
    (SpaceConfig, {"learning_rate": 0}, "above 0"),
    (SpaceConfig, {"learning_rate": [1e-4, -1e-4]}, "above 0"),
    (BackboneConfig, {"name": "a b", "path": "p"}, "pattern"),
    (BackboneConfig, {"name": ".hidden", "path": "p"}, "pattern"),
    (BackboneConfig, {"name": "../up", "path": "p"}, "pattern"),
    (BackboneConfig, {"name": "n" * 101, "path": "p"}, "at most 100"),
    (BackboneConfig, {"name": "a", "path": ""}, "at least 1 character"),
    (BackboneConfig, {"name": "a", "path": "p", "trust_remote_code": True}, "pin a revision"),
    *(
        (BackboneConfig, {"name": "a", "path": "p", "trust_remote_code": True, "revision": revision}, "of a commit")
        for revision in (
            "main",
            "v1.0",
            "abc1234",
            "refs/pr/1",
            "A" * 40,
            "g" * 40,
            "0" * 39,
            "0" * 41,
            "0" * 40 + "\n",
        )
    ),
    (FileSource, {"path": "train.csv"}, r"'train\.csv' must end in \.jsonl, \.json or \.parquet"),
    (HubSource, {"path": ""}, "at least 1 character"),
    (ReasoningGymSource, {"task": "t", "size": 0}, "greater than 0"),
    (DataConfig, {"train": FILE, "max_length": 1}, "greater than 1"),
    (DataConfig, {"train": FILE, "max_dropped": 1.5}, "less than or equal to 1"),
    (DataConfig, {"train": FILE, "max_bad": -0.1}, "greater than or equal to 0"),
    (DataConfig, {"train": FILE, "heldout_samples": 0}, "greater than 0"),
    (LoraConfig, {"dropout": 1}, "less than 1"),
    (TrainingConfig, {"betas": [0.9, 1]}, "less than 1"),
    (TrainingConfig, {"betas": [0.9]}, "Field required"),
    (TrainingConfig, {"steps": 0}, "greater than 0"),
    (TrainingConfig, {"epochs": math.inf}, "finite"),
    (TrainingConfig, {"warmup_ratio": 2}, "less than or equal to 1"),
    (ZeroConfig, {"stage": 4}, "0, 1, 2 or 3"),
    (ZeroConfig, {"stage": 0, "offload": "optimizer"}, "needs stage 1, 2 or 3"),
    (ZeroConfig, {"stage": 2, "offload": "all"}, "needs stage 3"),
    (WorkersConfig, {"resources": {"CPU": -1}}, "greater than or equal to 0"),
    (WorkersConfig, {"wait_minutes": 1}, "needs max_concurrent"),
    (WorkersConfig, {"wait_minutes": -1, "max_concurrent": 1}, "greater than or equal to 0"),
    (GenerationConfig, {"temperature": 0, "samples": 2}, "set samples to 1"),
    (GenerationConfig, {"answer_pattern": "("}, "not a regular expression: missing"),
    (AshaConfig, {"grace_period": 1, "reduction_factor": 1}, "greater than 1"),
    (AshaConfig, {"grace_period": 1, "reduction_factor": 2.5}, "valid integer"),
    (SearchConfig, {"metric": "train/loss"}, "'eval/accuracy'"),
    (TrialConfig, {"objective": {}, "learning_rate": 0, "seed": 0}, "greater than 0"),
    (TrackingConfig, {"tags": {"role": "mine"}}, "'role' is a tag that raysft or MLflow sets"),
    (TrackingConfig, {"tags": {"mlflow.user": "me"}}, "'mlflow.user' is a tag"),
    (TrackingConfig, {"tags": {"data/train": "x"}}, "'data/train' is a tag"),
    (TrackingConfig, {"tags": {"a`b": "x"}}, "pattern"),
    (TrackingConfig, {"tags": {"domain": ""}}, "at least 1 character"),
    (TrackingConfig, {"tags": {"domain": 3}}, "valid string"),
    (TrackingConfig, {"register_as": "a/b"}, "pattern"),
]


@pytest.mark.parametrize(("model", "values", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_impossible_values_are_refused(model: type[BaseModel], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": []}, "at least 1 item"),
        ({"backbones": [{"name": "a", "path": "p"}] * 2}, "two backbones are named 'a'"),
        ({"workers": {"count": 3}}, r"global_batch_size \(256\) must be a multiple of workers.count \(3\)"),
        ({"workers": {"lanes": 2}}, "workers.lanes above 1 needs training.lora"),
        ({"workers": {"lanes": 2}, "training": {"lora": {"dropout": 0.1}}}, "needs training.lora.dropout 0"),
        ({"workers": {"lanes": 2}, "training": {"lora": {}, "packing": False}}, "needs training.packing"),
        ({"workers": {"lanes": 2, "count": 2}, "training": {"lora": {}}}, "needs workers.count 1"),
        ({"workers": {"lanes": 2, "reuse": False}, "training": {"lora": {}}}, "needs workers.reuse"),
        (
            {"workers": {"lanes": 2}, "training": {"lora": {}}, "zero": {"stage": 3, "offload": "all"}},
            "needs zero.offload none",
        ),
        ({"evaluation": {}}, "eval/accuracy needs evaluation.generation"),
        ({"search": {"asha": {"grace_period": 5}}}, "asha needs evaluation.every"),
        (
            {"search": {"asha": {"grace_period": 5}}, "evaluation": {"every": 2, "generation": {}}},
            r"asha.grace_period \(5\) must be a multiple of evaluation.every \(2\).*set it to 6",
        ),
        ({"evaluation": {"generation": {"scorer": "reasoning_gym"}}}, "held-out data of kind reasoning_gym"),
        (
            {"evaluation": {"generation": {"scorer": "reasoning_gym"}}, "data": {"train": FIGLET, "heldout": FILE}},
            "held-out data of kind reasoning_gym",
        ),
        ({"tracking": {"register_as": "mine"}, "export": "none"}, "set export to best or all"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {}, "search": {"metric": "eval/nll"}},
        {"search": {"asha": {"grace_period": 5}}, "evaluation": {"every": 5, "generation": {}}},
        {"search": {"asha": {"grace_period": 6, "reduction_factor": 2}}, "evaluation": {"every": 3, "generation": {}}},
        {"evaluation": {"generation": {"scorer": "reasoning_gym"}}, "data": {"train": FIGLET}},
        {"evaluation": {"generation": {"temperature": 0}}},
        {"workers": {"lanes": 4}, "training": {"lora": {}}},
        {"zero": {"stage": 3, "offload": "all"}},
        {"zero": {"stage": 1, "offload": "optimizer"}},
        {
            "backbones": [
                {"name": "a", "path": "p", "trust_remote_code": True, "revision": "0123456789abcdef" * 2 + "0" * 8}
            ]
        },
        {"space": {"threshold": [0, 1], "learning_rate": 1e-9, "keep": ["above", "below"]}},
        {"tracking": {"register_as": "mine"}},
        {"tracking": {"tags": {"domain": "math", "roles": "all", "my/data": "x y"}}},
    ],
)
def test_their_possible_neighbours_are_taken(changes: dict[str, Any]) -> None:
    config = sweep(**changes)
    for section, values in changes.items():
        assert isinstance(values, list) or getattr(config, section).model_fields_set == values.keys()


def models() -> list[type[BaseModel]]:
    """Every model that a sweep file can reach, and what a trial is."""
    found: list[type[BaseModel]] = [TrialConfig]
    for model in found:
        for field in model.model_fields.values():
            found += [m for m in _models_in(field.annotation) if m not in found]
        if model is TrialConfig:
            found.append(SweepConfig)
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


@pytest.mark.parametrize("model", models(), ids=lambda m: m.__name__)
def test_no_model_takes_unknown_keys_or_changes(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]


def test_the_walk_over_models_sees_all_of_them() -> None:
    assert {SweepConfig, FileSource, Range, LoraConfig, AshaConfig, Power} <= set(models())


@pytest.mark.parametrize(
    "storage", ["", "/shared/runs", "s3://", "s3://login:password@bucket/runs", "s3://bucket/runs?region=x",
                "s3://bucket/a/../b/..//c", "http://bucket/runs", "file:///runs"]
)  # fmt: skip
def test_storage_is_an_address_in_a_bucket_without_keys(storage: str) -> None:
    with pytest.raises(ValidationError, match="is no address in a bucket: write s3://BUCKET/FOLDER"):
        sweep(storage=storage)


def test_a_bucket_keeps_the_folder_of_the_same_name() -> None:
    config = sweep(storage="s3://bucket/team/runs")
    assert (config.store.folder, config.store.uri) == (config.folder, f"s3://bucket/team/runs/{config.name}")
    assert sweep().store.uri is None
    with pytest.raises(ValidationError, match="set storage to it"):
        sweep(output="gs://bucket/runs")


# --- what is derived ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({}, "nll"),
        ({"exponent": 1}, "-p"),
        ({"exponent": 10}, "-p^10"),
        ({"exponent": 2.5}, "-p^2.5"),
        ({"exponent": 0.123456}, "exponent 0.1235"),
        ({"exponent": -0.5}, "exponent -0.5"),
        ({"threshold": 0.2}, "nll, p >= 0.2"),
        ({"threshold": 0}, "nll, p >= 0"),
        ({"exponent": 1, "threshold": 0.25, "keep": "below"}, "-p, p <= 0.25"),
        ({"threshold": 0.1, "threshold_unit": "quantile"}, "nll, p >= quantile 0.1"),
        ({"threshold": 0.1, "upper": 0.9}, "nll, 0.1 <= p <= 0.9"),
        ({"exponent": 1, "final_exponent": 0}, "exponent 1 to 0"),
    ],
)
def test_label(values: dict[str, Any], label: str) -> None:
    assert Power.model_validate(values).label() == label


@pytest.mark.parametrize("name", list(known()))
def test_every_objective_has_a_place_in_baselines_trials_and_space(name: str) -> None:
    whole = sweep(baselines=[{"type": name}], space={"objectives": [{"type": name}]})
    assert whole.all_baselines()[-1] == (known()[name]() if name != "power" else PAPER_BASELINES[-1])
    assert SweepConfig.model_validate(whole.model_dump(mode="json")) == whole
    fields = known()[name].model_fields.keys() - Selection.model_fields.keys() - known()[name].filled_in
    assert whole.space.dimensions(name).keys() == fields
    assert pickle.loads(pickle.dumps(whole)) == whole
    trial = TrialConfig(objective={"type": name}, learning_rate=1, seed=0)
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial
    assert name in trial.name()


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (
            {"objectives": [{"type": "focal", "gamma": {"low": 0, "high": 50}}]},
            "focal.gamma: must be at most 10, not 50",
        ),
        ({"objectives": [{"type": "huber", "delta": [0.5, 0]}]}, "huber.delta: must be above 0, not 0"),
        ({"objectives": [{"type": "focal", "gamma": [1, 50, 2]}]}, "focal.gamma: must be at most 10, not 50"),
        ({"objectives": [{"type": "gem", "link": ["linear", "linear"]}]}, "gem.link lists linear twice"),
        ({"exponent": [0.1, 1, 0.1]}, "exponent lists 0.1 twice: name each value once"),
        ({"threshold": [0.2, 0.2]}, "threshold lists 0.2 twice"),
        ({"threshold": 0.2, "keep": ["above", "above"]}, "keep lists above twice"),
        ({"objectives": [{"type": "dft"}, {"type": "dft"}]}, "objectives has 'dft' twice"),
        ({"objectives": [{"type": "power", "schedule": "cosine"}]}, "give a final_exponent as well"),
        ({"upper": 0.5}, "set threshold, and keep to [above]"),
        ({"upper": 0.5, "threshold": 0.2, "keep": ["below"]}, "set threshold, and keep to [above]"),
        ({"upper": [0.1, 0.5], "threshold": 0.2}, "upper lies between the largest threshold and 1"),
    ],
)
def test_spaces_with_values_that_no_objective_takes_are_refused(space: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        sweep(space=space)


def test_metrics_are_maximised_except_nll() -> None:
    modes = {metric: SearchConfig.model_validate({"metric": metric}).mode for metric in METRIC_MODES}
    assert modes == {"eval/accuracy": "max", "eval/nll": "min", "eval/mean_probability": "max"}


def test_bounds_of_each_kind_of_dimension() -> None:
    assert bounds(Range(low=1, high=3)) == (1, 3)
    assert bounds([3.0, 1.0, 2.0]) == (1, 3)
    assert bounds(2.0) == (2, 2)


def test_baselines_are_the_papers_and_the_files_own_each_once() -> None:
    assert sweep().all_baselines() == list(PAPER_BASELINES)
    own = [{"exponent": 0.5}, {"exponent": 1}, {"exponent": 0.5}, {"threshold": 0.2, "threshold_unit": "quantile"}]
    added = sweep(baselines=own).all_baselines()[4:]
    assert added == [Power(exponent=0.5), Power(threshold=0.2, threshold_unit="quantile")]


def test_folder_is_the_name_under_output() -> None:
    assert str(sweep(output="results/x").folder) == "results/x/s"


@pytest.mark.parametrize(
    ("training", "samples", "steps"),
    [
        ({"steps": 7, "epochs": 3}, 10_000, 7),
        ({}, 256, 1),
        ({}, 511, 1),
        ({}, 512, 2),
        ({"epochs": 0.5}, 1024, 2),
        ({"epochs": 3}, 300, 3),
        ({"epochs": 1}, 5, 1),
        ({"global_batch_size": 16}, 3200, 200),
    ],
)
def test_total_steps(training: dict[str, Any], samples: int, steps: int) -> None:
    assert total_steps(TrainingConfig.model_validate(training), samples) == steps


@given(st.integers(1, 10**6), st.integers(1, 4096), st.integers(1, 8))
def test_epochs_hold_whole_global_batches(samples: int, batch: int, epochs: int) -> None:
    steps = total_steps(TrainingConfig(global_batch_size=batch, epochs=epochs), samples)
    assert steps >= 1
    assert steps == 1 or steps * batch <= epochs * samples < (steps + 1) * batch


# --- one backbone's view --------------------------------------------------------------------------------------------


def test_a_study_has_its_backbone_alone_with_its_overrides_merged_in() -> None:
    overrides = {
        "training": {"learning_rate": 1e-3, "lora": {"rank": 4}},
        "evaluation": {"generation": {"samples": 3}},
        "workers": {"resources": {"GPU": 1}},
        "space": {"exponent": [0.5, 1]},
    }
    backbones = [{"name": "one", "path": "a/b"}, {"name": "two", "path": "c/d", "overrides": overrides}]
    config = sweep(backbones=backbones, training={"steps": 9}, evaluation={"generation": {"problems": 5}})
    study = config.for_backbone("two")
    assert study.backbone == BackboneConfig(name="two", path="c/d")
    assert (study.training.learning_rate, study.training.steps) == (1e-3, 9)
    assert study.training.lora == LoraConfig(rank=4)
    assert study.evaluation.generation == GenerationConfig(problems=5, samples=3)
    assert study.workers.resources == {"CPU": 1, "GPU": 1}
    assert study.space.exponent == [0.5, 1]
    assert study.data == config.data
    plain = config.for_backbone("one")
    assert plain == config.model_copy(update={"backbones": [config.backbones[0]]})


def test_an_override_can_name_a_data_source_of_another_kind() -> None:
    train = {"kind": "file", "path": "other.jsonl"}
    backbone = {"name": "one", "path": "a/b", "overrides": {"data": {"train": train, "max_length": 9}}}
    study = sweep(backbones=[backbone], data={"train": FIGLET, "prompt": "q"}).for_backbone("one")
    assert study.data == DataConfig(train=FileSource.model_validate(train), prompt="q", max_length=9)
    same_kind = {"name": "one", "path": "a/b", "overrides": {"data": {"train": {"seed": 3}}}}
    study = sweep(backbones=[same_kind], data={"train": FIGLET}).for_backbone("one")
    assert study.data.train == ReasoningGymSource(task="figlet_font", size=8, seed=3)


def test_an_override_that_contradicts_the_file_is_refused() -> None:
    backbone = {"name": "one", "path": "a/b", "overrides": {"workers": {"count": 3}}}
    config = sweep(backbones=[backbone])
    with pytest.raises(ValidationError, match="must be a multiple"):
        config.for_backbone("one")


# --- hash -----------------------------------------------------------------------------------------------------------


def changed_leaves(values: Any) -> Iterator[Any]:
    """The values with one leaf changed, for each leaf."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from ({**values, key: other} for other in changed_leaves(value))
    elif isinstance(values, list) and values:
        for i, value in enumerate(values):
            yield from ([*values[:i], other, *values[i + 1 :]] for other in changed_leaves(value))
    else:
        yield [values]


def test_hash_changes_with_any_value() -> None:
    evaluation = {"every": 5, "generation": {}}
    config = sweep(training={"lora": {}}, search={"asha": {"grace_period": 5}}, evaluation=evaluation)
    values = config.model_dump(mode="json")
    changed = [config_hash(other) for other in changed_leaves(values)]
    assert len(changed) > 70
    assert len({config_hash(config), *changed}) == len(changed) + 1


def test_hash_is_of_values_alone() -> None:
    config = sweep()
    values = config.model_dump(mode="json")
    backwards = dict(reversed(list(json.loads(json.dumps(values)).items())))
    assert config_hash(config) == config_hash(values) == config_hash(backwards)
    assert config_hash(config, {"a": 1}) != config_hash({"a": 1}, config)


def test_hash_of_a_study_does_not_see_whether_a_default_was_written_out() -> None:
    """A file that spells out what was a default resumes the runs of the one that did not."""
    short: dict[str, Any] = {"training": {"lora": {}}}
    long: dict[str, Any] = {
        "training": {"lora": {"alpha": 32}, "weight_decay": 0.01},
        "workers": {"resources": {"CPU": 1}},
    }
    assert config_hash(sweep(**short).for_backbone("one")) == config_hash(sweep(**long).for_backbone("one"))
