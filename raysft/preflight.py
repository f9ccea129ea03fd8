"""All that can be checked before a sweep starts: folders, files, fields and task names.

Contacts nobody: hub ids are taken as given. Needs neither torch nor ray.
"""

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from raysft.config import DataConfig, FileSource, ReasoningGymSource, Source, SweepConfig, TaskConfig
from raysft.errors import InputError, did_you_mean
from raysft.store import fetched

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
Shapes = dict[str, list[int]]


def check_output(folder: Path) -> None:
    """Raises InputError where results could not be written."""
    nearest = folder.absolute()
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"output {folder}", f"'{nearest}' is not a folder.", "Set output to another folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"output {folder}", f"'{nearest}' cannot be written to.", "Set output to another folder.")


def check_inside(root: Path, places: Sequence[Path]) -> None:
    """Raises InputError where a place, or a link below it, leads out of the folder that it belongs into."""
    root = root.resolve()
    for place in places:
        for path in (place, *_links(place)):
            if not (target := path.resolve()).is_relative_to(root):
                fix = "Remove the link, or name the folder that it leads to as the output."
                raise InputError(str(path), f"leads to {target}, out of {root}.", fix)


def _links(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (path for name in folders + files if (path := Path(parent, name)).is_symlink())


def check_written(config: SweepConfig) -> None:
    """Raises InputError where something of a sweep would be written outside its output folder."""
    beside = [config.output / name for name in ("cache", "mlartifacts", "mlflow.db")]
    check_inside(config.output, [config.folder, *(config.folder / b.name for b in config.backbones), *beside])


# --- backbones ------------------------------------------------------------------------------------------------------


def check_backbone(study: SweepConfig) -> Shapes | None:
    """Name -> shape of each tensor in the folder of a study's backbone; None for a hub id.

    Raises InputError for a folder that is missing or cannot be loaded from.
    """
    name, path = study.backbone.name, study.backbone.path
    place = f"backbone '{name}' ({path})"
    try:
        path = fetched(path)
        if Path(path).is_dir():
            return _check_folder(Path(path), study.data.template, place)
        _check_hub_id(path, place)
        return None
    except OSError as error:
        raise InputError(place, f"cannot be read: {error.strerror}.", "Check the path and its permissions.") from None


def check_model(path: str) -> None:
    """Raises InputError for a model's folder that cannot be loaded from, and for what is no hub id."""
    place = f"model '{path}'"
    path = fetched(path)
    if Path(path).is_dir():
        _check_folder(Path(path), "plain", place)
    else:
        _check_hub_id(path, place)


def _check_folder(folder: Path, template: str, place: str) -> Shapes:
    if not (folder / "config.json").is_file():
        merge = "Merge the adapter into its base model first." if (folder / "adapter_config.json").exists() else ""
        raise InputError(place, "the folder has no config.json.", merge or "Name a folder made by save_pretrained.")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(place, "the folder has no tokenizer.", "Save it there: tokenizer.save_pretrained(folder).")
    if template == "chat" and not has_chat_template(folder):
        fix = "Set data.template to a fixed one: qwen, llama3, deepseek or plain."
        raise InputError(place, "its tokenizer has no chat template, which data.template chat needs.", fix)
    return _shapes(folder, place)


def _check_hub_id(path: str, place: str) -> None:
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        return
    fix = "Give an existing folder, or a hub id of the form owner/name."
    if path.startswith("~"):
        fix = f"'~' is not expanded in a sweep file: write {Path(path).expanduser()}."
    elif "demo-materials" in path:
        fix = "Make the demo's backbones and data first: raysft demo --only-materials"
    elif siblings := [folder.name for folder in Path(path).parent.glob("*/")]:
        fix = did_you_mean(Path(path).name, siblings)
    raise InputError(place, "there is no such folder.", fix)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in a model's folder has one."""
    if any((folder / file).exists() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _shapes(folder: Path, place: str) -> Shapes:
    from safetensors import SafetensorError, safe_open

    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(str(file), f"is damaged: {error}.", "Copy or download it again.") from None
    if not shapes:
        fix = "Load the model and save it again with save_pretrained, which writes safetensors."
        raise InputError(place, "the folder has no weights in *.safetensors.", fix)
    return shapes


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """count: at most; None where only the hub knows. left_out: of those that cannot be read, a line for each split."""

    count: int | None
    left_out: tuple[str, ...] = ()


def check_data(data: DataConfig) -> Samples:
    """The samples to train on. Raises InputError for rows that cannot be used, held-out ones too."""
    held = 0 if data.heldout else data.heldout_samples
    train = _check_source("training data", data.train, data, data.train_samples, held)
    heldout = _check_source("held-out data", data.heldout or data.train, data, data.heldout_samples, 0)
    return Samples(train.count, train.left_out + heldout.left_out)


def check_tasks(tasks: dict[str, TaskConfig]) -> None:
    """Raises InputError for a task whose problems cannot be read; what lies on the hub is taken as given."""
    for name, task in tasks.items():
        source = task.source
        if isinstance(source, ReasoningGymSource):
            _check_task(source)
        elif isinstance(source, FileSource):
            from raysft.data.problems import task_examples

            task_examples(name, task)
        elif not os.path.exists(source.path):
            _check_hub_id(source.path, f"evaluation.tasks.{name} (data set '{source.path}')")


def _check_source(split: str, source: Source, data: DataConfig, limit: int | None, skip: int) -> Samples:
    """What the split, named for the user, would be; limit and skip as in load_examples."""
    if isinstance(source, ReasoningGymSource):
        from raysft.data.rows import check_some_left

        _check_task(source)
        check_some_left(source, source.size, skip)
        return Samples(min(source.size - skip, limit or source.size))
    if not isinstance(source, FileSource):
        if not os.path.exists(source.path):
            _check_hub_id(source.path, f"data set '{source.path}'")
        return Samples(limit)
    from raysft.data.sources import load_examples, share_unread

    examples, bad = load_examples(source, data, limit, skip)
    told = share_unread(len(bad), len(bad) + len(examples), bad[:1])
    return Samples(len(examples), (f"{split}: {told} They are left out.",) if bad else ())


def _check_task(source: ReasoningGymSource) -> None:
    tasks = _task_files()
    place = f"reasoning_gym {source.task}"
    if source.task not in tasks:
        raise InputError(place, "is not a task of reasoning-gym.", did_you_mean(source.task, list(tasks)))
    valid = _fields(*tasks[source.task])
    for name in source.params:
        if name not in valid:
            raise InputError(place, f"has no parameter '{name}'.", did_you_mean(name, valid))


def _task_files() -> dict[str, tuple[Path, str]]:
    """Task -> its file and the class of its settings, read from the source: importing the package takes seconds."""
    package = find_spec("reasoning_gym")
    if package is None or not package.submodule_search_locations:
        raise InputError("reasoning_gym", "is not installed.", "Install raysft with its dependencies.")
    call = re.compile(r"^register_dataset\(\s*([\w\"']+),\s*\w+,\s*(\w+)", re.MULTILINE)
    tasks = {}
    for file in sorted(Path(package.submodule_search_locations[0]).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for name, settings in call.findall(text):
            constant = re.search(rf"^{name}\s*=\s*(\S+)", text, re.MULTILINE)
            tasks[(constant[1] if constant else name).strip("\"'")] = file, settings
    return tasks


def _fields(file: Path, settings: str) -> list[str]:
    """The fields of a dataclass in a source file."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == settings)
    return [n.target.id for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
