"""Tasks in a sweep file: built-in ones, changed key by key, own ones, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from raysft.config import TASKS, EvaluationConfig, SweepConfig, TaskConfig, builtin_tasks
from raysft.errors import InputError
from raysft.sweepfile import absolute_paths, dump, load, load_tasks, schema

MATH = {"math500", "minerva_math", "olympiadbench", "aime24", "amc23"}
MEDICAL = {
    "medqa", "medmcqa", "pubmedqa", "mmlu_pro_medical", "gpqa_medical", "lancet", "nejm", "medbullets4", "medbullets5",
    "medxpertqa",
}  # fmt: skip
OWN = {"source": {"kind": "file", "path": "own.jsonl"}, "scorer": "numeric"}


def evaluation(tasks: Any, **others: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"tasks": tasks, **others})


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: t\nbackbones: [{name: a, path: owner/a}]\n"
        "data: {train: {kind: hub, path: owner/d}}\n"
        "evaluation:\n  tasks:\n    math500: {samples: 2}\n    gsm8k:\n    mine: {file: TASK}\n"
        "search: {metric: eval/mine/accuracy}\n".replace("TASK", str(tmp_path / "mine.yaml"))
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    return path


def test_the_papers_tasks_are_built_in_with_its_protocol() -> None:
    assert set(builtin_tasks()) == MATH | MEDICAL | {"gsm8k", "figlet_font"}
    tasks = evaluation(builtin_tasks()).tasks
    for name in MATH:
        task = tasks[name]
        assert (task.scorer, task.samples, task.temperature, task.max_new_tokens) == ("math", 16, 1, 4096)
        assert task.instruction.endswith("put your final answer within \\boxed{}.")
    for name in MEDICAL:
        task = tasks[name]
        assert (task.scorer, task.samples, task.temperature) == ("options", 1, 0)
    figlet = tasks["figlet_font"]
    assert (figlet.scorer, figlet.temperature, figlet.max_new_tokens) == ("figlet", 0, 5)
    assert figlet.source.kind == "reasoning_gym"
    assert (figlet.source.size, figlet.source.seed) == (5000, 42 + 40000)


@pytest.mark.parametrize("name", builtin_tasks())
def test_a_built_in_task_says_where_it_is_from(name: str) -> None:
    text = (TASKS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 120


def test_a_task_is_changed_key_by_key() -> None:
    changed = evaluation({"math500": {"samples": 2, "source": {"revision": "abc"}}}).tasks["math500"]
    plain = evaluation(["math500"]).tasks["math500"]
    assert changed == plain.model_copy(
        update={"samples": 2, "source": plain.source.model_copy(update={"revision": "abc"})}
    )
    local = evaluation({"math500": {"source": {"kind": "file", "path": "x.jsonl"}}}).tasks["math500"]
    assert local.source.model_dump(mode="json") == {"kind": "file", "path": "x.jsonl", "key": None}


def test_a_task_of_ones_own_is_a_file_or_written_out(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    found = evaluation({"a": {"file": str(tmp_path / "mine.yaml"), "samples": 3}, "b": OWN}).tasks
    assert found["b"] == TaskConfig.model_validate(OWN)
    assert found["a"] == found["b"].model_copy(update={"samples": 3})


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["mth500"], "'mth500' is no built-in task. Did you mean 'math500'?"),
        ({"mine": {"scorer": "math"}}, "'mine' is no built-in task."),
        ({"mine": {"scorer": "math", "sourcee": {}}}, "the task 'mine' has no key 'sourcee'. Did you mean 'source'?"),
        ({"mine": OWN | {"options": ["a"]}}, "at least 2 items"),
        (["gsm8k", "gsm8k"], "the task 'gsm8k' stands twice"),
        ({"a b": OWN}, "must be made of letters, digits"),
        ({"generation": OWN}, "cannot be named 'generation'"),
        ({"gsm8k": 3}, "must be a mapping of keys to values"),
        ({"gsm8k": {"samples": 4}}, "set samples to 1"),
        ({"gsm8k": {"sampels": 4}}, "Extra inputs are not permitted"),
        ({"gsm8k": {"instruction": "no"}}, "must hold {prompt}"),
        ({"gsm8k": {"instruction": "{prompt} {options}"}}, "name their field with options"),
        ({"gsm8k": {"scorer": "options"}}, "needs options: name the field"),
        ({"gsm8k": {"scorer": "reasoning_gym"}}, "needs a source of kind reasoning_gym"),
        ({"gsm8k": {"response_pattern": "("}}, "not a regular expression"),
        ({"gsm8k": {"answer_pattern": ["a", "("]}}, "not a regular expression"),
        ({"gsm8k": {"main_score": "exact"}}, "is none that the scorer math has, not 'exact'"),
        ({"figlet_font": {"main_score": "exct"}}, "exact, case_insensitive, jaro_winkler, not 'exct'"),
        ({"medqa": {"scorer": "loglikelihood", "temperature": 1, "samples": 2}}, "generates nothing: set samples to 1"),
        ({"a": {"source": {"kind": "file", "path": "a.jsonl", "key": "b"}}}, "leave it out for other files"),
        ({"a": {"source": {"kind": "hub", "path": "a", "key": "b"}}}, "name that file with file"),
    ],
)
def test_impossible_tasks_are_refused(tasks: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("{", r"\{").replace("?", r"\?")):
        evaluation(tasks)


def test_options_are_for_tasks_alone() -> None:
    with pytest.raises(ValidationError, match=r"generation\.scorer options needs the options of each problem"):
        evaluation({}, generation={"scorer": "options"})


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n", "holds no mapping"), ("a: [\n", "is not YAML"), ("a: 1\na: 2\n", "is in line 1 already")],
)
def test_files_that_hold_no_task_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        evaluation({"t": {"file": str(tmp_path / "t.yaml")}})
    with pytest.raises(InputError, match="cannot be read: No such file"):
        evaluation({"t": {"file": str(tmp_path / "missing.yaml")}})


def test_a_sweep_file_with_tasks_is_what_the_schema_says_and_is_dumped_whole(sweep_file: Path) -> None:
    config = load(sweep_file)
    assert config.search.mode == "max"
    assert list(config.evaluation.tasks) == ["math500", "gsm8k", "mine"]
    validator = Draft202012Validator(json.loads(schema()))
    validator.validate(yaml.safe_load(sweep_file.read_text()))
    validator.validate(yaml.safe_load(dump(config)))
    assert SweepConfig.model_validate(yaml.safe_load(dump(config))) == config
    assert config.for_backbone("a").evaluation == config.evaluation


def test_settings_reach_into_tasks(sweep_file: Path) -> None:
    config = load(sweep_file, ["evaluation.tasks.math500.problems=7", "evaluation.tasks.mine.samples=2"])
    assert (config.evaluation.tasks["math500"].problems, config.evaluation.tasks["math500"].samples) == (7, 2)
    assert config.evaluation.tasks["mine"].samples == 2
    with pytest.raises(InputError, match="math500") as error:
        load(sweep_file, ["evaluation.tasks.math500.samples=true"])
    assert "must be a number, not true" in error.value.reason


def test_local_paths_of_tasks_are_made_absolute(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text("{}")
    assert f'evaluation.tasks.mine.source.path="{tmp_path}/own.jsonl"' in absolute_paths(load(sweep_file))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.metric=eval/min/accuracy", "'min' is not in evaluation.tasks. Did you mean 'mine'?"),
        ("search.metric=eval/mine/acuracy", "must be 'eval/accuracy', .* or 'eval/TASK/accuracy', not"),
        ("evaluation.tasks={}", "'mine' is not in evaluation.tasks. None is named there."),
    ],
)
def test_the_metric_must_be_of_a_task_that_is_named(sweep_file: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load(sweep_file, [setting])


def test_the_mean_over_tasks_may_be_the_metric(sweep_file: Path) -> None:
    assert load(sweep_file, ["search.metric=eval/accuracy"]).search.task is None


def test_tasks_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    tasks = load_tasks(["gsm8k", str(tmp_path / "mine.yaml")], ["problems=5", "source.path=elsewhere.jsonl"])
    assert [(name, task.problems) for name, task in tasks.items()] == [("gsm8k", 5), ("mine", 5)]
    assert str(tasks["mine"].source.path) == tasks["gsm8k"].source.path == "elsewhere.jsonl"
    with pytest.raises(InputError, match=r"--task gsm: 'gsm' is no built-in task\. Did you mean 'gsm8k'"):
        load_tasks(["gsm"])
    with pytest.raises(InputError, match=r"--task gsm8k sampels: 'sampels' is not a key here\. Did you mean 'samples'"):
        load_tasks(["gsm8k"], ["sampels=2"])
