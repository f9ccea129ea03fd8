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
from raysft.config import (
    PAPER_BASELINES,
    FileSource,
    HubSource,
    LoraConfig,
    Range,
    ReasoningGymSource,
    SweepConfig,
    TrialConfig,
    builtin_tasks,
)
from raysft.data.problems import task_examples
from raysft.errors import InputError
from raysft.objectives import Power, known
from raysft.preflight import check_tasks
from raysft.refusal import Loc
from raysft.sweepfile import dump, load, load_tasks, schema
from raysft.yamltext import parse, write

FOLDER = Path(__file__).parents[1] / "sweeps"
ALL = sorted(FOLDER.glob("*.yaml"))
OVERLAYS = [path for path in ALL if "data" not in parse(path.read_text(), str(path)).values]
FILES = [path for path in ALL if path not in OVERLAYS]
PACKAGE = Path(raysft.__file__).parent
SHIPPED = [*ALL, PACKAGE / "demo.yaml", *sorted((PACKAGE / "tasks").glob("*.yaml"))]
SETTING = re.compile(r"""--set (?:'([^']+)'|([^\s;]+))""")


def comments(path: Path) -> str:
    """The text of the comments, commands that go on in the next line joined."""
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def loaded(path: Path, sets: list[str] | None = None) -> SweepConfig:
    """A sweep; of an overlay, the one over the file of mathematics."""
    return load(FOLDER / "math.yaml", sets or [], [path]) if path in OVERLAYS else load(path, sets or [])


def test_the_files_are_found() -> None:
    assert {path.stem for path in FILES} >= {
        "code", "debug", "demo", "figlet", "gsm8k", "languages", "math", "medical", "objectives", "your-data",
    }  # fmt: skip
    assert {path.stem for path in OVERLAYS} == {"grid", "lora", "newer", "quantiles"}
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


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_overlay_fits_every_file(path: Path, overlay: Path) -> None:
    config = load(path, overlays=[overlay])
    assert config.name == f"{path.stem}-{overlay.stem}"
    for backbone in config.backbones:
        assert config.for_backbone(backbone.name).searched >= 0
    Draft202012Validator(json.loads(schema())).validate(yaml.safe_load(dump(config)))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
def test_an_overlay_says_so_and_is_refused_alone(overlay: Path) -> None:
    assert overlay.read_text().startswith("# Over a sweep file: ")
    with pytest.raises(InputError, match="it is an overlay"):
        load(overlay)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_the_settings_that_its_comments_name_are_valid(path: Path) -> None:
    found = [(quoted or bare).rstrip(".") for quoted, bare in SETTING.findall(path.read_text().replace("\\\n#", " "))]
    settings = [s for s in found if not s.endswith("=")]  # without those left to be filled in: path=...
    config = loaded(path, settings)
    assert (config == loaded(path)) == (settings == [])


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_the_commands_that_its_comments_name_exist(path: Path) -> None:
    """Of a sweep those on itself, of an overlay those with it."""
    told = re.findall(r"raysft ([a-z]+) (?:sweeps/)?([\w.-]*)(.*)", comments(path))
    assert told
    for command, file, rest in told:
        assert command in ("sweep", "submit", "check", "demo", "schema")
        over = re.findall(r"--with (?:sweeps/)?([\w.-]+)", rest)
        assert {FOLDER / name for name in over} <= set(OVERLAYS)
        if path in OVERLAYS:
            assert FOLDER / file in FILES
            assert over == [path.name]
        else:
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


def searched(config: SweepConfig, backbone: str) -> list[TrialConfig]:
    grid = config.for_backbone(backbone).grid()
    assert grid is not None
    return grid


@pytest.mark.parametrize(("name", "backbone"), [("math", "qwen2.5-math-1.5b"), ("figlet", "qwen2.5-7b")])
def test_the_grid_has_the_exponents_of_the_figures(name: str, backbone: str) -> None:
    """0.1 to 1 in tenths and 1 to 10 in ones, each once, with the baselines; all else as in the file."""
    config = load(FOLDER / f"{name}.yaml", overlays=[FOLDER / "grid.yaml"])
    plain = load(FOLDER / f"{name}.yaml")
    run = [o.exponent for o in config.all_baselines() if isinstance(o, Power) and o.threshold is None]
    run += [trial.objective.exponent for trial in searched(config, backbone)]
    assert sorted(run) == [0, *(tenths / 10 for tenths in range(1, 10)), *range(1, 11)]
    changed = {"name", "space", "search", "confirm"}
    assert config.model_dump(exclude=changed) == plain.model_dump(exclude=changed)
    assert config.search.metric == plain.search.metric


def test_the_quantiles_are_taken_in_both_directions_for_three_objectives() -> None:
    config = load(FOLDER / "math.yaml", overlays=[FOLDER / "quantiles.yaml"])
    trials = [trial.objective for trial in searched(config, "qwen2.5-math-1.5b")]
    whole, *cut = sorted(trials, key=lambda objective: objective.threshold or 0)
    assert (whole.type, whole.threshold) == ("log_one_minus_p", None)
    found = {(o._name(), o.keep, o.threshold) for o in cut}
    quantiles = [0.05, *(tenths / 10 for tenths in range(1, 10))]
    assert found == {
        (name, keep, q) for name in ("nll", "-p", "log_one_minus_p") for keep in ("above", "below") for q in quantiles
    }
    assert {o.threshold_unit for o in cut} == {"quantile"}
    assert len(trials) == 1 + 3 * 2 * 10


def test_newer_backbones_replace_the_files() -> None:
    config = load(FOLDER / "medical.yaml", overlays=[FOLDER / "newer.yaml"])
    assert len(config.backbones) == 8
    assert {b.name for b in config.backbones}.isdisjoint({"qwen2.5-1.5b", "llama-3.1-8b"})
    templates = {b.name: config.for_backbone(b.name).data.template for b in config.backbones}
    assert set(templates.values()) == {"qwen", "llama3", "plain"}
    assert templates["llama-3.2-1b"] == "llama3"


def test_adapters_can_be_trained_in_lanes() -> None:
    config = load(FOLDER / "math.yaml", ["workers.lanes=4"], [FOLDER / "lora.yaml"])
    assert config.training.lora == LoraConfig(rank=16, alpha=32)
    assert config.workers.resources == load(FOLDER / "math.yaml").workers.resources
    assert config.for_backbone("qwen2.5-math-7b").training.learning_rate == 2e-4


def test_code_is_not_searched_by_what_it_cannot_measure() -> None:
    """A fixed list, all models kept for EvalPlus, no task that would run code, and nothing confirmed by the NLL."""
    config = load(FOLDER / "code.yaml")
    assert config.search.sampler == "grid"
    assert config.export == "all"
    assert config.confirm is None
    assert not config.evaluation.tasks
    assert config.for_backbone("qwen2.5-coder-7b").searched == 4


def test_languages_are_asked_in_the_seven_of_the_paper() -> None:
    tasks = load(FOLDER / "languages.yaml").evaluation.tasks.values()
    assert {task.source.subset for task in tasks if isinstance(task.source, HubSource)} == {
        "mr", "te", "ne", "sw", "wo", "yo", "zu",
    }  # fmt: skip
    assert len({task.model_dump_json(exclude={"source"}) for task in tasks}) == 1
    assert all(task.scorer == "options" and len(task.options or []) == 10 for task in tasks)


def test_a_row_of_mmlu_prox_becomes_a_question(tmp_path: Path) -> None:
    """The fields that the test has, of which the last options may be null."""
    options = {f"option_{i}": f"choice {i}" if i < 4 else None for i in range(10)}
    row = {"question_id": 7, "question": "Kí ni?", "answer": "C", "answer_index": 2, "category": "law", **options}
    (tmp_path / "yo.jsonl").write_text(json.dumps(row) + "\n")
    task = load(FOLDER / "languages.yaml").evaluation.tasks["yoruba"]
    local = FileSource(path=tmp_path / "yo.jsonl")
    (example,) = task_examples("yoruba", task.model_copy(update={"source": local}))
    assert example.response == "C"
    assert "Kí ni?\nA. choice 0\nB. choice 1\nC. choice 2\nD. choice 3\nAnswer" in example.messages[0]["content"]


@pytest.mark.parametrize(
    ("name", "backbones", "tokens"),
    [
        ("math", {"llama-3.1-8b", "deepseek-math-7b", "qwen2.5-math-1.5b", "qwen2.5-math-7b"}, 4 * 3072),
        ("medical", {"llama-3.2-3b", "llama-3.1-8b", "qwen2.5-1.5b", "qwen2.5-math-7b"}, 16 * 800),
        ("figlet", {"llama-3.2-3b", "llama-3.1-8b", "qwen2.5-1.5b", "qwen2.5-7b"}, 16 * 800),
        ("code", {"qwen2.5-coder-7b"}, 4 * 3096),
        ("languages", {"llama-3.1-8b", "qwen2.5-7b"}, 16 * 1024),
    ],
)
def test_a_domain_has_the_papers_backbones_and_recipe(name: str, backbones: set[str], tokens: int) -> None:
    config = load(FOLDER / f"{name}.yaml")
    training = config.training
    assert {backbone.name for backbone in config.backbones} == backbones
    assert (training.epochs, training.global_batch_size, training.micro_batch_tokens) == (1, 256, tokens)
    assert (training.betas, training.max_grad_norm, training.warmup_ratio) == ((0.9, 0.95), 1, 0.1)
    assert (training.schedule, training.precision, config.workers.count) == ("cosine", "bf16", 2)
    assert training.weight_decay == {"figlet": 1e-5, "languages": 1e-4}.get(name, 0.01)
    for backbone in backbones:
        rate = 2e-5 if backbone == "llama-3.1-8b" else 5e-5
        assert config.for_backbone(backbone).training.learning_rate == rate


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


def is_own_word(loc: Loc) -> bool:
    """A key that the user may choose: of a tag, or of a task that is not built in."""
    own_task = loc[:-1] == ("evaluation", "tasks") and loc[-1] not in builtin_tasks()
    return own_task or loc[:-1] == ("tracking", "tags")


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
    elif FOLDER / path.name in OVERLAYS:
        check(load(FOLDER / "math.yaml", overlays=[path]))
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
    places = [loc for loc in keys(values) if not is_own_word(loc)]
    assert len(places) > 4
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
