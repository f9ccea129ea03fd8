"""Sweep files: what load reads, where it refuses, what --set does, and that dump is its inverse."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from raysft.config import FileSource, HubSource, Range, SpaceConfig, SweepConfig, TrainingConfig
from raysft.errors import InputError
from raysft.objectives import Power
from raysft.sweepfile import absolute, absolute_paths, dump, load, schema, validated
from raysft.yamltext import write as write_yaml

TEXT = """\
name: s
backbones:
  - name: small
    path: a/b
  - {name: v1.5, path: c/d}
data:
  train: {kind: file, path: train.jsonl}
evaluation:
  generation: {}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes s.yaml into the working directory: the text above, and more below it."""
    monkeypatch.chdir(tmp_path)

    def write(more: str = "", text: str = TEXT) -> Path:
        path = Path("s.yaml")
        path.write_text(text + more, encoding="utf-8")
        return path

    return write


def refusal(path: Path, *sets: str) -> InputError:
    with pytest.raises(InputError) as refused:
        load(path, sets)
    return refused.value


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_with_defaults(write: Write) -> None:
    config = load(write("training: {learning_rate: 1e-5}\n"))
    assert [b.name for b in config.backbones] == ["small", "v1.5"]
    assert config.training == TrainingConfig(learning_rate=1e-5)


def test_a_byte_order_mark_is_passed_over(write: Write) -> None:
    assert load(write(text="\ufeff" + TEXT)).name == "s"


@pytest.mark.parametrize(
    ("more", "place", "reason", "fix"),
    [
        ("trainig: {}\n", "line 10: trainig", "'trainig' is not a key here.", "Did you mean 'training'?"),
        ("training:\n  steps: 5\n  stesp: 3\n", "line 12: training.stesp", "'stesp' is not a key", "mean 'steps'?"),
        ("training:\n  steps: -1\n", "line 11: training.steps", "must be above 0, not -1.", "The default is null."),
        ("training:\n", "line 10: training", "must be a mapping of keys to values", "Leave the key out"),
        ("baselines:\n  - {}\n  - threshold: 7\n", "line 12: baselines[1].threshold", "must be at most 1", "default"),
        ("space:\n  exponent:\n    low: 1\n", "line 11: space.exponent.high", "'high' is missing.", "Add it."),
        ("space:\n  exponent:\n  - 1\n  - x\n", "line 13: space.exponent[1]", "must be a number, not 'x'.", ""),
        ("workers: {count: true}\n", "line 10: workers.count", "must be a number, not true.", ""),
        ("space: {exponent: [1, false]}\n", "line 10: space.exponent[1]", "must be a number, not false.", ""),
        ("zero:\n  stage: true\n", "line 11: zero.stage", "must be a number, not true.", ""),
        (
            "training: {global_batch_size: 3}\nworkers: {count: 2}\n",
            "line 10: training.global_batch_size",
            "training.global_batch_size (3) must be a multiple",
            "",
        ),
        ("name: t\n", "line 10", "'name' is in line 1 already.", "Keep one of the two."),
        ("training:\n  steps: 3\n  steps: 4\n", "line 12", "'steps' is in line 11 already.", "Keep one of the two."),
        ("8: x\n", "line 10", "a key '8' is not text.", "Put it in quotes."),
        ("training:\n\tsteps: 3\n", "line 11", "cannot start any token", "Indent with spaces, not tabs."),
        ("training: {steps: 3\n", "line 11", "is not YAML", "Check the indentation"),
        ("seed: *x\n", "line 10", "undefined alias", "Check"),
    ],
)
def test_a_mistake_is_refused_with_its_line(write: Write, more: str, place: str, reason: str, fix: str) -> None:
    error = refusal(write(more))
    assert error.place == f"s.yaml {place}"
    assert reason in error.reason
    assert fix in error.fix
    assert bool(fix) == bool(error.fix)


def test_missing_sections_are_told_at_the_top(write: Write) -> None:
    error = refusal(write(text="# which sweep\nname: s\nbackbones: [{name: a, path: p}]\n"))
    assert str(error) == "s.yaml line 2: data: 'data' is missing. Add it."


def test_all_errors_are_listed_together(write: Write) -> None:
    more = "seed: -1\nexport: bset\ntraining: {steps: 3, steps: 4}\nspace: {exponent: x}\n"
    error = refusal(write(more), "probe.sampels=3")
    assert error.place == "s.yaml"
    heading, *listed = error.reason.splitlines()
    assert heading == "5 errors:"
    assert [line.split(": ")[0].strip() for line in sorted(listed)] == [
        "--set probe.sampels=3",
        "s.yaml line 10",
        "s.yaml line 11",
        "s.yaml line 12",
        "s.yaml line 13",
    ]
    assert "  s.yaml line 11: export: must be 'best', 'all' or 'none', not 'bset'. Did you mean 'best'?" in listed


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_is_refused(write: Write, text: str) -> None:
    assert refusal(write(text=text)).place.startswith("s.yaml")


def test_a_file_that_is_not_text_is_refused(write: Write) -> None:
    path = write()
    path.write_bytes(b"name: caf\xe9\n")
    assert str(refusal(path)) == "s.yaml: is not UTF-8 text. A sweep file is YAML; see sweeps/ for some."


def test_a_missing_file_is_refused_with_its_nearest_sibling(write: Write) -> None:
    write()
    Path("other.yml").write_text(TEXT)
    assert str(refusal(Path("t.yaml"))) == "t.yaml: does not exist. Did you mean 's.yaml'?"
    assert refusal(Path("othr.yaml")).fix == "Did you mean 'other.yml'?"
    assert refusal(Path("nowhere/x.yaml")).fix == "Check the path."


def test_a_directory_is_refused(write: Write) -> None:
    write()
    assert str(refusal(Path("."))) == ".: cannot be read: Is a directory. Name a readable YAML file."


# --- overrides of a backbone ----------------------------------------------------------------------------------------


def overriding(overrides: str) -> str:
    return TEXT.replace("    path: a/b\n", f"    path: a/b\n    overrides:\n      {overrides}\n")


@pytest.mark.parametrize(
    ("overrides", "place", "reason", "fix"),
    [
        ("trainig: {steps: 3}", "line 6: {}.trainig", "'trainig' cannot differ between backbones.", "mean 'training'?"),
        ("search: {trials: 3}", "line 6: {}.search", "'search' cannot differ between backbones.", "Did you mean"),
        ("training: {stesp: 3}", "line 6: {}.training.stesp", "'stesp' is not a key here.", "Did you mean 'steps'?"),
        ("training: {steps: 0}", "line 6: {}.training.steps", "must be above 0, not 0.", "The default is null."),
        ("training: {steps: true}", "line 6: {}.training.steps", "must be a number, not true.", ""),
        ("training: 3", "line 6: {}.training", "must be a mapping of keys to values, not 3.", "Leave the key out"),
        (
            "training: {global_batch_size: 0}",
            "line 6: {}.training.global_batch_size",
            "must be above 0, not 0.",
            "256.",
        ),
        ("workers: {count: 7}", "line 5: {}", "training.global_batch_size (256) must be a multiple", ""),
        ("evaluation: {generation: null}", "line 5: {}", "search.metric eval/accuracy needs", ""),
        ("data: {train: {kind: hbu}}", "line 6: {}.data.train.kind", "must be 'file', 'hub' or", "Did you mean 'hub'?"),
        ("space: {exponent: x}", "line 6: {}.space.exponent", "must be a number, not 'x'.", "Give a number or a list"),
    ],
)
def test_wrong_overrides_are_refused(write: Write, overrides: str, place: str, reason: str, fix: str) -> None:
    error = refusal(write(text=overriding(overrides)))
    assert error.place == "s.yaml " + place.format("backbones[0].overrides")
    assert error.reason.startswith(reason)
    assert fix in error.fix
    assert bool(fix) == bool(error.fix)


def test_right_overrides_are_taken(write: Write) -> None:
    config = load(write(text=overriding("training: {gradient_checkpointing: true, steps: 3}")))
    assert config.for_backbone("small").training == TrainingConfig(gradient_checkpointing=True, steps=3)
    assert config.for_backbone("v1.5").training == TrainingConfig()


# --- settings of the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("training.steps=20", "training.steps", 20),
        ("training.learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("training.steps=", "training.steps", None),
        ("training.steps= 7", "training.steps", 7),
        ("training.gradient_checkpointing=true", "training.gradient_checkpointing", True),
        ("data.system='a: b=c'", "data.system", "a: b=c"),
        ("data.prompt_suffix=a=b", "data.prompt_suffix", "a=b"),
        ("data.prompt_suffix=no", "data.prompt_suffix", "no"),
        ("space.exponent=[0, 1]", "space.exponent", [0, 1]),
        ("space.exponent={low: 1, high: 2}", "space.exponent", Range(low=1, high=2)),
        ("workers.resources={CPU: 1, GPU: 1}", "workers.resources", {"CPU": 1, "GPU": 1}),
        ("evaluation.generation.samples=4", "evaluation.generation.samples", 4),
        ("evaluation.generation.answer_pattern='#(\\d+)'", "evaluation.generation.answer_pattern", "#(\\d+)"),
        ("baselines=[{exponent: 2}]", "baselines", [Power(exponent=2)]),
        ("backbones.0.path=x", "backbones.0.path", "x"),
        ("backbones.1.path=x", "backbones.1.path", "x"),
        ("backbones.small.path=x", "backbones.0.path", "x"),
        ("backbones.v1.5.path=x", "backbones.1.path", "x"),
        ("backbones.v1.5.overrides.training.steps=3", "backbones.1.overrides", {"training": {"steps": 3}}),
    ],
)
def test_set_replaces_one_value(write: Write, setting: str, key: str, value: Any) -> None:
    found: Any = load(write(), [setting])
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == value


def test_settings_apply_in_turn_and_leave_the_rest(write: Write) -> None:
    sets = ["training.lora={rank: 4}", "training.lora.alpha=8", "training.lora.rank=2", "seed=3"]
    config, plain = load(write(), sets), load(write())
    assert config.training.lora is not None
    assert (config.training.lora.rank, config.training.lora.alpha, config.seed) == (2, 8, 3)
    assert config.data == plain.data


def test_setting_a_shared_value_leaves_its_other_places(write: Write) -> None:
    path = write("training: *t\n", overriding("training: &t {steps: 3}"))
    config = load(path, ["training.steps=9"])
    assert config.training.steps == 9
    assert config.for_backbone("small").training.steps == 3


@pytest.mark.parametrize(
    ("setting", "key", "reason", "fix"),
    [
        ("trainin.steps=3", ": trainin", "'trainin' is not a key here.", "Did you mean 'training'?"),
        ("training.stesp=3", "", "'stesp' is not a key here.", "Did you mean 'steps'?"),
        ("training.steps=0", "", "must be above 0, not 0.", "The default is null."),
        ("training={steps: 0}", ": training.steps", "must be above 0, not 0.", "The default is null."),
        ("training.steps=true", "", "must be a number, not true.", ""),
        ("training.betas=[0.9, false]", ": training.betas[1]", "must be a number, not false.", ""),
        ("name.x=3", "", "'name' is 's' and holds no keys.", "Set it as a whole: --set 'name={x: ...}'."),
        ("backbones.smal.path=x", "", "'backbones' has no 'smal'.", "Did you mean 'small'?"),
        ("backbones.9.path=x", "", "'backbones' has no '9'.", "Valid: 0, 1, small, v1.5."),
        ("backbones.-1.path=x", "", "'backbones' has no '-1'.", "Did you mean '1'?"),
        ("backbones.small.pth=x", "", "'pth' is not a key here.", "Did you mean 'path'?"),
        ("backbones.0.overrides={train: {}}", ": backbones[0].overrides.train", "'train' cannot differ", "'training'?"),
        ("backbones.0.overrides.training.steps=true", "", "must be a number, not true.", ""),
        ("zero.offload=all", ": zero", "offloading the weights needs stage 3", ""),
        ("training.steps", "", "is not of the form key=value.", "--set training.steps=20"),
        ("=3", "", "is not of the form key=value.", "--set training.steps=20"),
        ("training..steps=3", "", "is not of the form key=value.", "--set training.steps=20"),
        ("training=[", "", "is not YAML", "Check the indentation, brackets and quotes"),
        ("training={8: 1}", "", "a key '8' is not text.", "Put it in quotes."),
        ("training={steps: 3, steps: 4}", "", "'steps' is in line 1 already.", "Keep one of the two."),
    ],
)
def test_a_wrong_setting_is_refused_by_its_own_words(
    write: Write, setting: str, key: str, reason: str, fix: str
) -> None:
    error = refusal(write(), setting)
    assert error.place == f"--set {setting}{key}"
    assert error.reason.startswith(reason)
    assert fix in error.fix
    assert bool(fix) == bool(error.fix)


def test_a_mistake_of_the_file_is_not_blamed_on_a_setting(write: Write) -> None:
    path = write("training:\n  steps: 0\n")
    assert refusal(path, "training.epochs=2").place == "s.yaml line 11: training.steps"
    assert load(path, ["training.steps=2"]).training.steps == 2
    assert load(path, ["training={}"]).training.steps is None


def test_what_file_and_setting_make_wrong_together_names_both(write: Write) -> None:
    error = refusal(write("zero: {stage: 1}\n"), "zero.offload=all")
    assert error.place == "s.yaml line 10 with --set zero.offload=all: zero"
    assert error.reason == "offloading the weights needs stage 3."


def test_a_key_that_a_setting_leaves_missing_is_blamed_on_it(write: Write) -> None:
    error = refusal(write(), "search.asha.reduction_factor=2")
    assert error.place == "--set search.asha.reduction_factor=2: search.asha.grace_period"
    assert error.reason == "'grace_period' is missing."


# --- overlays -------------------------------------------------------------------------------------------------------


@pytest.fixture
def laid(write: Write) -> Callable[..., list[Path]]:
    """Writes overlays into the working directory, as a.yaml, b.yaml, ..."""

    def laid(*texts: str) -> list[Path]:
        paths = [Path(f"{name}.yaml") for name, _ in zip("abc", texts, strict=False)]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return paths

    return laid


Laid = Callable[..., list[Path]]


def overlay_refusal(path: Path, overlays: list[Path], *sets: str) -> InputError:
    with pytest.raises(InputError) as refused:
        load(path, sets, overlays)
    return refused.value


def test_an_overlay_replaces_keys_and_leaves_the_rest(write: Write, laid: Laid) -> None:
    path = write("space: {exponent: {low: 1, high: 2}, keep: [below], threshold: 0.2}\ntraining: {steps: 9}\n")
    config = load(path, overlays=laid("space: {exponent: [0.5, 2]}\ntraining:\n  lora: {rank: 4}\n"))
    assert config.space == SpaceConfig(exponent=[0.5, 2], keep=["below"], threshold=0.2)
    assert config.training == TrainingConfig(steps=9, lora={"rank": 4})
    assert config.data == load(path).data


def test_overlays_come_in_their_order_and_before_settings(write: Write, laid: Laid) -> None:
    overlays = laid("seed: 1\ntraining: {steps: 1, epochs: 2}\n", "seed: 2\ntraining: {steps: 2}\n")
    config = load(write("seed: 7\n"), ["training.steps=3"], overlays)
    assert (config.seed, config.training.steps, config.training.epochs) == (2, 3, 2)


def test_an_overlay_keeps_its_results_apart_by_its_name(write: Write, laid: Laid) -> None:
    path = write()
    assert load(path, overlays=laid("seed: 1\n", "seed: 2\n")).name == "s-a-b"
    assert load(path, overlays=laid("name: t\n", "seed: 2\n")).name == "t-b"
    assert load(path, overlays=laid("seed: 1\n", "name: t\n")).name == "t"
    assert load(path, ["name=u"], laid("seed: 1\n")).name == "u"


def test_a_list_replaces_a_list_and_a_source_one_of_another_kind(write: Write, laid: Laid) -> None:
    config = load(write(), overlays=laid("backbones: [{name: x, path: y}]\ndata: {train: {kind: hub, path: h}}\n"))
    assert [backbone.name for backbone in config.backbones] == ["x"]
    assert config.data.train == HubSource(path="h")


def test_an_empty_section_of_an_overlay_changes_the_name_alone(write: Write, laid: Laid) -> None:
    path = write("training: {steps: 3}\n")
    assert load(path, ["name=s"], laid("training: {}\n")) == load(path)


@pytest.mark.parametrize(
    ("overlay", "place", "reason"),
    [
        ("training:\n  stesp: 3\n", "a.yaml line 2: training.stesp", "'stesp' is not a key here."),
        ("trainig: {}\n", "a.yaml line 1: trainig", "'trainig' is not a key here."),
        ("seed: 1\ntraining:\n  steps: 0\n", "a.yaml line 3: training.steps", "must be above 0, not 0."),
        ("\nbackbones:\n- name: x\n", "a.yaml line 3: backbones[0].path", "'path' is missing."),
        (
            "search:\n  asha: {reduction_factor: 2}\n",
            "a.yaml line 2: search.asha.grace_period",
            "'grace_period' is missing.",
        ),
        (
            "\nzero:\n  offload: all\n",
            "s.yaml line 10 with a.yaml line 2: zero",
            "offloading the weights needs stage 3.",
        ),
        ("seed: 1\nseed: 2\n", "a.yaml line 2", "'seed' is in line 1 already."),
        ("workers: {count: true}\n", "a.yaml line 1: workers.count", "must be a number, not true."),
        ("data: {train: {kind: hub}}\n", "a.yaml line 1: data.train.path", "'path' is missing."),
        ("data: {train: {key: x}}\n", "s.yaml line 7 with a.yaml line 1: data.train", "key names a list inside"),
        ("- 1\n", "a.yaml line 1", "is no mapping of keys to values."),
        ("", "a.yaml", "is empty."),
    ],
)
def test_a_mistake_is_told_where_it_was_made(write: Write, laid: Laid, overlay: str, place: str, reason: str) -> None:
    path = write("zero: {stage: 1}\n")
    assert load(path).zero.stage == 1
    error = overlay_refusal(path, laid(overlay))
    assert error.place == place
    assert error.reason.startswith(reason)


def test_what_the_file_has_wrong_stays_its_own(write: Write, laid: Laid) -> None:
    path = write("training: {steps: 0}\n")
    assert overlay_refusal(path, laid("training: {epochs: 2}\n")).place == "s.yaml line 10: training.steps"
    missing = write(text="name: s\nbackbones: [{name: a, path: p}]\n")
    assert overlay_refusal(missing, laid("seed: 2\n")).place == "s.yaml line 1: data"
    error = overlay_refusal(write(), laid("training: {steps: 3}\n"), "training.steps=0")
    assert error.place == "--set training.steps=0"


def test_the_last_of_several_overlays_is_blamed(write: Write, laid: Laid) -> None:
    overlays = laid("training: {steps: 3}\n", "\ntraining: {steps: 0}\n", "seed: 1\n")
    assert overlay_refusal(write(), overlays).place == "b.yaml line 2: training.steps"


def test_an_overlay_alone_is_no_sweep(write: Write, laid: Laid) -> None:
    write()
    (path,) = laid("space: {exponent: [1, 2]}\n")
    error = refusal(path)
    assert str(error) == (
        "a.yaml: has neither a name nor data, so that it is an overlay. "
        "Lay it over a sweep file: raysft sweep FILE --with a.yaml"
    )


def test_an_overlay_that_is_not_there_is_refused(write: Write) -> None:
    assert str(overlay_refusal(write(), [Path("z.yaml")])) == "z.yaml: does not exist. Did you mean 's.yaml'?"


LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 9),
    "training.steps": st.integers(1, 9),
    "training.lora.rank": st.integers(1, 9),
    "training.lora.alpha": st.integers(1, 9),
    "search.asha.grace_period": st.integers(1, 9),
    "evaluation.generation.samples": st.integers(1, 4),
    "space.exponent": st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    "backbones": st.just([{"name": "x", "path": "y"}]),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({"evaluation.every": st.just(1)}, optional=LEAVES))
def test_an_overlay_says_what_settings_say(tmp_path_factory: pytest.TempPathFactory, leaves: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "sweep.yaml").write_text(TEXT)
    nested: dict[str, Any] = {}
    for key, value in leaves.items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    (folder / "over.yaml").write_text(write_yaml(nested))
    sets = [f"{key}={json.dumps(value)}" for key, value in leaves.items()]
    laid_over = load(folder / "sweep.yaml", ["name=s"], [folder / "over.yaml"])
    assert laid_over == load(folder / "sweep.yaml", sets)


# --- other ways in and out ------------------------------------------------------------------------------------------


def test_validated_names_the_place_it_was_given() -> None:
    assert validated(Power, {"exponent": 2}, "train") == Power(exponent=2)
    with pytest.raises(InputError) as refused:
        validated(Power, {"threshold": 2}, "train")
    assert str(refused.value) == "train threshold: must be at most 1, not 2. The default is null."
    with pytest.raises(InputError, match="train: 2 errors"):
        validated(Power, {"threshold": 2, "keep": "over"}, "train")


def test_absolute_paths_let_a_file_run_from_another_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = "data: {heldout: {kind: file, path: 'it''s held.jsonl'}}"
    path = write(text=overriding(heldout)).absolute()
    Path("a/b").mkdir(parents=True)
    for file in ("train.jsonl", "it's held.jsonl"):
        Path(file).touch()
    sets, here = absolute_paths(load(path)), absolute(load(path))
    monkeypatch.chdir("a")
    config = load(path, sets)
    assert config == here
    assert config.output == tmp_path / "runs"
    assert [b.path for b in config.backbones] == [str(tmp_path / "a" / "b"), "c/d"]  # c/d is no folder: a hub id
    assert config.data.train == FileSource(path=tmp_path / "train.jsonl")
    study = config.for_backbone("small")
    assert study.data.heldout == FileSource(path=tmp_path / "it's held.jsonl")
    assert load(path, [*sets, "seed=4"]).seed == 4


def test_absolute_paths_stay(write: Write) -> None:
    config = load(write(), ["output=/x/y"])
    assert absolute_paths(config) == ['output="/x/y"']
    gym = load(write(), ["data.train={kind: reasoning_gym, task: figlet_font, size: 8}"])
    assert absolute_paths(gym) == [f"output={json.dumps(os.path.abspath('runs'))}"]


def test_schema_is_draft_2020_12_and_knows_the_keys(write: Write) -> None:
    document = json.loads(schema())
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]
    assert document["properties"].keys() == SweepConfig.model_fields.keys()
    validator = Draft202012Validator(document)
    values = load(write()).model_dump(mode="json")
    assert validator.is_valid(values)
    assert not validator.is_valid(values | {"trainig": {}})
    assert not validator.is_valid(values | {"training": {"steps": 0}})
    assert not validator.is_valid({key: value for key, value in values.items() if key != "data"})


# --- round trip -----------------------------------------------------------------------------------------------------


SCHEMA = json.loads(schema())
NAMES = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9_-])?\Z")
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["no", "1e5", "12:30", "null", "~", "a: b", "- x", " y ", "\n"]
)
POSITIVE = st.floats(1e-300, 1e300)
PARAMS = st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS), max_size=3)
SOURCES = st.one_of(
    st.fixed_dictionaries({"kind": st.just("file"), "path": TEXTS.map(lambda t: t + "x.jsonl")}),
    st.fixed_dictionaries({"kind": st.just("hub"), "path": TEXTS, "subset": st.none() | TEXTS}),
    st.fixed_dictionaries(
        {"kind": st.just("reasoning_gym"), "task": TEXTS, "size": st.integers(1, 10**12), "params": PARAMS}
    ),
)
POWERS = st.fixed_dictionaries(
    {
        "exponent": st.floats(-1e6, 1e6),
        "threshold": st.none() | st.floats(0, 1),
        "keep": st.sampled_from(["above", "below"]),
    }
)
DIMENSIONS = st.one_of(
    st.floats(1e-9, 1),
    st.lists(st.floats(1e-9, 1), min_size=1, max_size=3, unique=True),
    st.fixed_dictionaries({"low": st.floats(1e-9, 0.4), "high": st.floats(0.5, 1), "log": st.booleans()}),
)
BACKBONES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": NAMES, "path": TEXTS},
    optional={
        "revision": st.from_regex(r"\A[a-z0-9]{1,9}([./-][a-z0-9]{1,9})?\Z"),
        "overrides": st.fixed_dictionaries(
            {}, optional={"training": st.fixed_dictionaries({"learning_rate": POSITIVE}), "data": st.just({"seed": 1})}
        ),
    },
)


def name_of(backbone: dict[str, Any]) -> str:
    return backbone["name"]


SWEEPS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "output": TEXTS,
        "backbones": st.lists(BACKBONES, min_size=1, max_size=3, unique_by=name_of),
        "data": st.fixed_dictionaries(
            {"train": SOURCES, "heldout": st.none() | SOURCES, "prompt": TEXTS, "system": st.none() | TEXTS}
        ),
        "space": st.fixed_dictionaries({"exponent": DIMENSIONS, "threshold": st.none() | DIMENSIONS}),
        "baselines": st.lists(POWERS, max_size=2),
        "training": st.fixed_dictionaries(
            {"learning_rate": POSITIVE, "lora": st.none() | st.fixed_dictionaries({"target_modules": st.lists(TEXTS)})}
        ),
        "workers": st.fixed_dictionaries({"resources": st.dictionaries(TEXTS, st.floats(0, 1e9), max_size=2)}),
        "evaluation": st.just({"generation": {}}),
        "tracking": st.fixed_dictionaries({"uri": st.none() | TEXTS}),
    }
)


@settings(deadline=None)
@given(SWEEPS)
def test_load_undoes_dump(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config = SweepConfig.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config


@settings(deadline=None)
@given(SWEEPS)
def test_schema_takes_what_is_dumped(values: dict[str, Any]) -> None:
    Draft202012Validator(SCHEMA).validate(SweepConfig.model_validate(values).model_dump(mode="json"))
