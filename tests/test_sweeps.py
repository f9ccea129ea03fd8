"""The files in sweeps/ load, are what the JSON schema describes, and mean what their comments say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import raysft
from raysft.check import check
from raysft.config import PAPER_BASELINES, LoraConfig, Range, ReasoningGymSource, builtin_tasks
from raysft.errors import InputError
from raysft.objectives import known
from raysft.preflight import check_tasks
from raysft.refusal import Loc
from raysft.sweepfile import dump, load, load_tasks, schema
from raysft.yamltext import parse, write

FOLDER = Path(__file__).parents[1] / "sweeps"
FILES = sorted(FOLDER.glob("*.yaml"))
PACKAGE = Path(raysft.__file__).parent
SHIPPED = [*FILES, PACKAGE / "demo.yaml", *sorted((PACKAGE / "tasks").glob("*.yaml"))]
OWN_NAMES = ("tracking", "tags")  # keys that are the user's own words
SETTING = re.compile(r"""--set (?:'([^']+)'|([^\s;]+))""")


def comments(path: Path) -> str:
    """The text of the comments, commands that go on in the next line joined."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def test_the_files_are_found() -> None:
    assert {path.stem for path in FILES} >= {
        "debug", "demo", "figlet", "gsm8k", "math", "medical", "objectives", "your-data",
    }  # fmt: skip
    assert [path for path in FOLDER.iterdir() if path.suffix != ".yaml"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_loads_under_its_own_name(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    assert config.output == Path("runs")
    for backbone in config.backbones:
        assert config.for_backbone(backbone.name).backbone.name == backbone.name
    assert config.all_baselines()[:4] == list(PAPER_BASELINES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_is_as_the_schema_says(path: Path) -> None:
    validator = Draft202012Validator(json.loads(schema()))
    validator.validate(parse(path.read_text(), str(path)).values)
    validator.validate(yaml.safe_load(dump(load(path))))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_settings_that_its_comments_name_are_valid(path: Path) -> None:
    found = [(quoted or bare).rstrip(".") for quoted, bare in SETTING.findall(path.read_text().replace("\\\n#", " "))]
    settings = [s for s in found if not s.endswith("=")]  # without those left to be filled in: path=...
    config = load(path, settings)
    assert (config == load(path)) == (settings == [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_commands_that_its_comments_name_exist(path: Path) -> None:
    named = set(re.findall(r"raysft ([a-z]+) (?:sweeps/)?([\w.-]*)", comments(path)))
    assert named
    for command, file in named:
        assert command in ("sweep", "submit", "check", "demo", "schema")
        assert not file.endswith(".yaml") or file == path.name


def test_the_demo_that_comes_with_the_package_is_the_one_shown() -> None:
    assert (Path(raysft.__file__).parent / "demo.yaml").read_text() == (FOLDER / "demo.yaml").read_text()


def test_files_over_the_demos_materials_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "debug", "objectives"):
        with pytest.raises(InputError, match="raysft demo --only-materials"):
            check(load(FOLDER / f"{name}.yaml"))


def test_every_objective_is_in_the_file_of_all() -> None:
    assert {objective.type for objective in load(FOLDER / "objectives.yaml").all_baselines()} == set(known())


def test_figlet_is_the_papers_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 words of two to five letters, one epoch in batches of 256; the next 5,000 are tested."""
    monkeypatch.chdir(tmp_path)
    config = load(FOLDER / "figlet.yaml")
    plans = check(config).backbones
    assert {(plan.samples, plan.steps, plan.trials) for plan in plans} == {(40_000, 156, 35)}
    train, heldout, task = config.data.train, config.data.heldout, config.evaluation.tasks["figlet_font"]
    assert isinstance(train, ReasoningGymSource)
    assert isinstance(heldout, ReasoningGymSource)
    assert train.params == heldout.params
    assert heldout.seed >= train.seed + train.size
    assert task.source == heldout
    assert task.system == config.data.system


@pytest.mark.parametrize(
    ("name", "tasks", "samples", "temperature", "length"), [("math", 5, 16, 1, 3072), ("medical", 10, 1, 0, 800)]
)
def test_a_domain_of_the_paper_has_its_protocol(
    name: str,
    tasks: int,
    samples: int,
    temperature: float,
    length: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(FOLDER / f"{name}.yaml")
    plans = check(config).backbones
    assert len(plans) == 4
    found = config.evaluation.tasks.values()
    assert [(task.samples, task.temperature) for task in found] == [(samples, temperature)] * tasks
    assert {task.instruction.endswith(config.data.prompt_suffix) for task in found} == {True}
    assert config.search.metric == "eval/accuracy"
    assert config.data.max_length == length
    rates = {b.name: config.for_backbone(b.name).training.learning_rate for b in config.backbones}
    assert rates.pop("llama-3.1-8b") == 2e-5
    assert set(rates.values()) == {5e-5}
    assert config.for_backbone("llama-3.1-8b").data.template == "llama3"


def test_gsm8k_reads_local_files_as_its_comment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"})
    for name, count in (("train", 130), ("test", 20)):
        Path(f"{name}.jsonl").write_text(f"{row}\n" * count)
    sources = [
        f"data.{key}={{kind: file, path: {name}.jsonl}}" for key, name in (("train", "train"), ("heldout", "test"))
    ]
    (plan,) = check(load(FOLDER / "gsm8k.yaml", sources)).backbones
    assert (plan.samples, plan.steps) == (130, 2)


def test_the_shared_copy_of_gsm8k_fits_the_file() -> None:
    """Where the real rows lie beside the repository, they are what the file expects."""
    path = FOLDER.parents[1] / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip("no copy of GSM8K beside the repository")
    source = f"{{kind: file, path: {json.dumps(str(path))}}}"
    (plan,) = check(load(FOLDER / "gsm8k.yaml", [f"data.train={source}", f"data.heldout={source}"])).backbones
    assert plan.samples == 1319


def test_what_your_data_leaves_commented_out_is_valid(tmp_path: Path) -> None:
    text = re.sub(r"^( +)# (?=(  )?[a-z_]+: )", r"\1", (FOLDER / "your-data.yaml").read_text(), flags=re.MULTILINE)
    path = tmp_path / "filled.yaml"
    path.write_text(re.sub(r"^( +)# (?=overrides:)", r"\1", text, flags=re.MULTILINE))
    config = load(path)
    assert config.backbones[0].revision == "main"
    assert config.for_backbone("smollm2-135m").training.learning_rate == 2e-5
    assert config.data.heldout is not None
    assert config.data.messages == "messages"
    assert config.space.threshold == Range(low=0.05, high=0.5)
    assert config.space.dimensions("focal") == {"gamma": Range(low=0, high=5)}
    assert config.space.learning_rate == Range(low=1e-5, high=1e-4, log=True)
    assert config.training.lora == LoraConfig(rank=16, alpha=32)
    assert config.evaluation.generation is not None
    assert config.evaluation.generation.answer_pattern == "#### (.+)"


def test_your_data_finds_mistakes_in_ones_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(FOLDER / "your-data.yaml")
    with pytest.raises(InputError, match=r"^data/train.jsonl: does not exist\."):
        check(config)
    rows: list[dict[str, Any]] = [{"prompt": f"{i}?", "response": f"{i}"} for i in range(300)]
    Path("data").mkdir()
    Path("data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (plan,) = check(config).backbones
    assert (plan.samples, plan.steps, plan.tokens) == (300 - 256, 1, 64 * 1024)


# --- misspelt ---------------------------------------------------------------------------------------------------------


def keys(values: Any, loc: Loc = ()) -> list[Loc]:
    """The place of every key at any depth."""
    if isinstance(values, dict):
        return [place for key, value in values.items() for place in ((*loc, key), *keys(value, (*loc, key)))]
    if isinstance(values, list):
        return [place for position, value in enumerate(values) for place in keys(value, (*loc, position))]
    return []


def misspelt(word: str, way: int) -> str:
    """Two letters exchanged, one left out or one doubled."""
    at = next(i for i in range(len(word) - 1, 0, -1) if word[i] != word[i - 1])
    ways = (word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :], word[:at] + word[at + 1 :], word + word[-1])
    return ways[way % len(ways)]


def renamed(values: Any, loc: Loc, name: str) -> Any:
    """The values with the key at loc called `name`."""
    key, *rest = loc
    if isinstance(values, list):
        return [renamed(v, tuple(rest), name) if i == key else v for i, v in enumerate(values)]
    if rest:
        return {k: renamed(v, tuple(rest), name) if k == key else v for k, v in values.items()}
    return {name if k == key else k: v for k, v in values.items()}


def read_and_check(path: Path) -> None:
    """What every command does with a file before it starts anything."""
    if path.parent.name == "tasks":
        check_tasks(load_tasks([str(path)]))
    else:
        check(load(path))


def assert_refused(path: Path, name: str) -> None:
    """With the name and the nearest right one."""
    with pytest.raises(InputError) as refused:
        read_and_check(path)
    said = str(refused.value)
    assert f"'{name}'" in said
    assert "Did you mean '" in said or "write '" in said


@pytest.mark.faults
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_key_that_is_misspelt_is_refused_with_the_right_one(path: Path, tmp_path: Path) -> None:
    values = parse(path.read_text(), str(path)).values
    (tmp_path / path.parent.name).mkdir()
    changed = tmp_path / path.parent.name / path.name
    places = [loc for loc in keys(values) if loc[:-1] != OWN_NAMES]
    assert len(places) > 5
    for way, loc in enumerate(places):
        name = misspelt(str(loc[-1]), way)
        changed.write_text(write(renamed(values, loc, name)))
        assert_refused(changed, name)


@pytest.mark.faults
@pytest.mark.parametrize("name", [*known(), *builtin_tasks()])
def test_an_objective_or_task_that_is_misspelt_is_refused_with_the_right_one(name: str, tmp_path: Path) -> None:
    values = parse((FOLDER / "your-data.yaml").read_text(), "your-data.yaml").values
    path = tmp_path / "sweep.yaml"
    for way in range(3):
        wrong = misspelt(name, way)
        if name in known():
            changes = {"baselines": [{"type": wrong}]}, {"space": {"objectives": [{"type": wrong}]}}
        else:
            changes = ({"evaluation": {"tasks": {wrong: {}}}}, {"evaluation": {"tasks": [wrong]}})
        for change in changes:
            path.write_text(write(values | change))
            assert_refused(path, wrong)
