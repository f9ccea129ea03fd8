"""What a model is asked and how its answers are judged: the section `evaluation`, and the tasks it may name.

A task is a mapping of these keys: a file in raysft/tasks/, a file of one's own, or written out in the sweep file.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from raysft.config.source import Source
from raysft.errors import InputError, did_you_mean
from raysft.strict import Strict
from raysft.yamltext import parse

TASKS = Path(__file__).parents[1] / "tasks"
TASK_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"

Template = Literal["chat", "qwen", "llama3", "deepseek", "plain"]
ScorerName = Literal["exact_match", "numeric", "reasoning_gym", "math", "options", "figlet", "loglikelihood"]

# The scores of scorers that give several; the first is the main one unless main_score names another.
SCORES: dict[str, tuple[str, ...]] = {
    "figlet": ("exact", "case_insensitive", "jaro_winkler"),
    "loglikelihood": ("sum", "per_character"),
}
NEEDS_OPTIONS = ("options", "loglikelihood")


class GenerationConfig(Strict):
    """Accuracy of what a model writes: avg@k at a temperature, or greedy."""

    scorer: ScorerName = "exact_match"
    answer_pattern: str | list[str] | None = Field(
        default=None,
        description="regular expression whose last match is the answer, or several to try in turn; math looks for "
        "a box first, and has patterns of its own where this is null",
    )
    main_score: str | None = Field(default=None, description="of a scorer with several; null: the first")
    tolerance: float = Field(default=1e-4, ge=0, lt=1, description="of math: relative, where a number is a decimal one")
    timeout: float = Field(
        default=5.0, gt=0, description="of math and reasoning_gym: seconds to judge an answer, which then fails"
    )
    problems: int | None = Field(default=256, gt=0, description="at most so many, at an even stride; null: all")
    samples: int = Field(default=1, gt=0, description="k of avg@k")
    temperature: float = Field(default=1.0, ge=0, description="0 is greedy")
    max_new_tokens: int = Field(default=256, gt=0)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="texts that end a completion, which is judged without them"
    )
    seconds: float | None = Field(
        default=None, gt=0, description="that a completion may take; it is then cut, as truncated; null: no limit"
    )
    batch_size: int = Field(default=64, gt=0, description="sequences generated at once by one worker")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("greedy decoding (temperature 0) gives the same sample each time: set samples to 1")
        scores = SCORES.get(self.scorer, ())
        if self.main_score is not None and self.main_score not in scores:
            listed = f"is one of {', '.join(scores)}" if scores else f"is none that the scorer {self.scorer} has"
            raise ValueError(f"main_score {listed}, not '{self.main_score}'")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str | list[str] | None) -> str | list[str] | None:
        return _compiled(pattern)

    @property
    def patterns(self) -> list[str]:
        return _listed(self.answer_pattern)


def _listed(pattern: str | list[str] | None) -> list[str]:
    return [pattern] if isinstance(pattern, str) else pattern or []


def _compiled(pattern: Any) -> Any:
    for text in _listed(pattern):
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _partial(schema: dict[str, Any]) -> None:
    """In a sweep file a task may start from a built-in one or a file, so that no key of it is required."""
    schema.pop("required", None)
    schema["properties"]["file"] = {"type": "string", "description": "YAML file with the task's keys"}


class TaskConfig(GenerationConfig):
    """A benchmark: where its problems are, how they are put to the model, how its answers are judged."""

    model_config = ConfigDict(json_schema_extra=_partial)

    source: Source
    where: dict[str, str | int | bool] = Field(default={}, description="only the rows whose fields have these values")
    prompt: str = Field(default="question", description="field with the question")
    response: str = Field(default="answer", description="field with the answer")
    response_pattern: str | None = Field(
        default=None, description="regular expression; its last match in the answer's field is the answer"
    )
    options: str | Annotated[list[str], Field(min_length=2)] | None = Field(
        default=None,
        description="field with the options: label -> text, or a list of texts; or a list of fields with one each",
    )
    instruction: str = Field(default="{prompt}", description="what the model reads: {prompt}, {options} are filled in")
    system: str | None = Field(default=None, description="system message; null: the template's own, if it has one")
    template: Template | None = Field(default=None, description="null: that of the data section")
    problems: int | None = Field(default=None, gt=0, description="at most so many, at an even stride; null: all")
    shorten: bool = Field(
        default=False, description="fewer new tokens than max_new_tokens where the model has no room for them"
    )
    scored_option: Literal["text", "label"] = Field(
        default="text", description="of loglikelihood: what of an option the model's likelihood is taken of"
    )

    @field_validator("response_pattern")
    @classmethod
    def _compiles_too(cls, pattern: str | None) -> str | None:
        return _compiled(pattern)

    @model_validator(mode="after")
    def _askable(self) -> Self:
        if "{prompt}" not in self.instruction:
            raise ValueError("instruction must hold {prompt}, where the question stands")
        if "{options}" in self.instruction and self.options is None:
            raise ValueError("instruction holds {options}: name their field with options")
        if self.scorer in NEEDS_OPTIONS and self.options is None:
            raise ValueError(f"the scorer {self.scorer} needs options: name the field that holds them")
        if self.scorer == "reasoning_gym" and self.source.kind != "reasoning_gym":
            raise ValueError("the scorer reasoning_gym needs a source of kind reasoning_gym")
        if self.scorer == "loglikelihood" and self.samples > 1:
            raise ValueError("the scorer loglikelihood generates nothing: set samples to 1")
        return self


def builtin_tasks() -> list[str]:
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def task_values(name: str, changes: dict[str, Any] | None) -> dict[str, Any]:
    """A task's keys: those of its file (`file` among the changes) or of the built-in of its name, then the changes.

    Raises ValueError for what is no task, and InputError for a file that cannot be read.
    """
    if not re.fullmatch(TASK_NAME, name):
        raise ValueError(f"the task name '{name}' must be made of letters, digits, '_' and '-', at most 100")
    if name == "generation":
        raise ValueError("a task cannot be named 'generation', which is the held-out data's section: rename it")
    if not isinstance(changes or {}, dict):
        raise ValueError(f"the task '{name}' must be a mapping of keys to values: {{}} takes it as it is")
    changes = dict(changes or {})
    if "file" in changes:
        base = _read(Path(str(changes.pop("file"))))
    elif name in builtin_tasks():
        base = _read(TASKS / f"{name}.yaml")
    elif "source" in changes:
        base = {}
    else:
        unknown = [key for key in changes if key not in TaskConfig.model_fields]
        hints = {key: did_you_mean(key, ["source", "file"]) for key in unknown}
        if misspelt := next((key for key, hint in hints.items() if hint.startswith("Did")), None):
            raise ValueError(f"the task '{name}' has no key '{misspelt}'. {hints[misspelt]}")
        raise ValueError(
            f"'{name}' is no built-in task. {did_you_mean(name, builtin_tasks())} "
            "A task of one's own has a source, or a file: {file: mytask.yaml}"
        )
    return base | _merged_sources(base, changes)


def _merged_sources(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A source of the same kind is changed key by key: {path: ...} alone moves the built-in one."""
    old, new = base.get("source"), changes.get("source")
    if isinstance(old, dict) and isinstance(new, dict) and new.get("kind", old.get("kind")) == old.get("kind"):
        return changes | {"source": old | new}
    return changes


def _read(path: Path) -> dict[str, Any]:
    try:
        document = parse(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}.", "Name a YAML file with a task.") from None
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text.", "A task is a small YAML file.") from None
    if document.refused:
        raise document.refused[0]
    if not isinstance(document.values, dict):
        raise InputError(str(path), "holds no mapping of keys to values.", "Write a task's keys: source, scorer, ...")
    return document.values


def _tasks(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if duplicate := next((name for name in value if value.count(name) > 1), None):
            raise ValueError(f"the task '{duplicate}' stands twice: name it once")
        value = dict.fromkeys(value)
    if isinstance(value, dict):
        return {name: task_values(name, changes) for name, changes in value.items()}
    return value


Tasks = Annotated[
    dict[str, TaskConfig],
    BeforeValidator(_tasks, json_schema_input_type=list[str] | dict[str, TaskConfig | None]),
]


class EvaluationConfig(Strict):
    generation: GenerationConfig | None = Field(default=None, description="accuracy on the held-out data; null: none")
    tasks: Tasks = Field(default={}, description="benchmarks: built-in names, each with the keys that differ, or own")
    every: int | None = Field(default=None, gt=0, description="steps; null: only after training")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.generation and self.generation.scorer in NEEDS_OPTIONS:
            raise ValueError(
                f"generation.scorer {self.generation.scorer} needs the options of each problem: write it as a task"
            )
        return self
