"""The command line as a user meets it: real processes, their output, exit codes, and what they import."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import raysft
from raysft.config import SweepConfig
from raysft.sweepfile import dump, load

HEAVY = {"torch", "ray", "transformers", "datasets", "mlflow", "deepspeed", "optuna", "numpy", "reasoning_gym"}
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
Done = subprocess.CompletedProcess[str]


def start(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *options, "-m", "raysft", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=300)
    return Done(process.args, process.returncode, out, err)


def raysft_(*arguments: str) -> Done:
    return finish(start(*arguments))


def refused(done: Done) -> str:
    """The one sentence or so that a refusal is."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, additions: Path) -> Path:
    """A sweep of two tiny backbones, written with all defaults."""
    folder = tmp_path_factory.mktemp("cli")
    values: dict[str, Any] = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "backbones": [{"name": name, "path": str(tiny_backbone)} for name in ("one", "two")],
        "data": {
            "train": {"kind": "file", "path": str(additions / "train.jsonl")},
            "heldout": {"kind": "file", "path": str(additions / "heldout.jsonl")},
            "template": "plain",
            "max_length": 64,
        },
        "training": {"steps": 4, "global_batch_size": 8, "precision": "fp32", "learning_rate": 1e-3},
        "evaluation": {"generation": {"answer_pattern": "#(\\d+)", "problems": 4, "max_new_tokens": 8}},
        "search": {"trials": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(dump(SweepConfig.model_validate(values)))
    return path


# --- light ----------------------------------------------------------------------------------------------------------


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a command imports."""
    done = finish(start(*arguments, options=("-X", "importtime")))
    assert done.returncode == 0
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("train", "--help"), ("schema",)], ids=" ".join)
def test_what_needs_no_library_imports_none(arguments: tuple[str, ...]) -> None:
    packages = imported(*arguments)
    assert {"raysft", "typer"} <= packages
    assert packages & HEAVY == set()


def test_check_imports_no_library_for_files_and_tasks(tmp_path: Path) -> None:
    """A hub backbone over local rows, as in sweeps/your-data.yaml, and generated data, as in sweeps/figlet.yaml."""
    rows = tmp_path / "train.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n" * 2)
    sweeps = Path(__file__).parents[1] / "sweeps"
    source = f"data={{train: {{kind: file, path: {rows}}}, heldout: {{kind: file, path: {rows}}}, template: plain}}"
    output = f"output={tmp_path}/runs"
    assert (
        imported("check", str(sweeps / "your-data.yaml"), "--set", source, "--set", output) & HEAVY - {"numpy"} == set()
    )
    for name in ("figlet", "math"):  # with the estimate
        assert imported("check", str(sweeps / f"{name}.yaml"), "--set", output) & HEAVY == set()


def test_version() -> None:
    done = raysft_("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"raysft {raysft.__version__}\n", "")


def test_help_names_every_command() -> None:
    done = raysft_("--help")
    assert done.returncode == 0
    commands = re.findall(r"^  ([a-z]+)  +[A-Z]", done.stdout, re.MULTILINE)
    expected = {
        "demo", "check", "probe", "advise", "train", "sweep", "report", "ui", "evaluate", "rescore", "submit", "schema",
    }  # fmt: skip
    assert set(commands) == expected


def test_schema_is_json_that_fits_a_sweep_file(sweep_file: Path) -> None:
    done = raysft_("schema")
    assert (done.returncode, done.stderr) == (0, "")
    Draft202012Validator(json.loads(done.stdout)).validate(load(sweep_file).model_dump(mode="json"))


def test_check_prints_the_plan(sweep_file: Path) -> None:
    done = raysft_("check", str(sweep_file), "--set", "training.steps=20")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["trials", "12"] in rows
    assert rows.count(["trials", "6 (4 baselines, 2 searched)"]) == 2
    assert rows.count(["steps of a trial", "at most 20"]) == 2
    assert rows.count(["tokens of a trial", "at most 10,240"]) == 2
    assert not (sweep_file.parent / "runs").exists()


def test_an_overlay_is_laid_over_the_file(sweep_file: Path, tmp_path: Path) -> None:
    """Ten exponents, of which 1 is a baseline, for the second backbone one more by a setting."""
    overlay = tmp_path / "grid.yaml"
    overlay.write_text(
        "space: {exponent: {low: 0.1, high: 1, log: false, step: 0.1}}\nsearch: {sampler: grid, trials: null}\n"
    )
    own = "backbones.two.overrides={space: {exponent: [0.5, 2]}}"
    done = raysft_("check", str(sweep_file), "--set", own, "--with", str(overlay))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["sweep", "tiny-grid"] in rows
    assert [row[1] for row in rows if row[0] == "trials"] == [
        "19", "13 (4 baselines, 9 searched)", "6 (4 baselines, 2 searched)",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["check", "sweep", "train", "probe", "submit", "advise", "evaluate"])
def test_every_command_that_reads_a_sweep_file_takes_overlays(sweep_file: Path, tmp_path: Path, command: str) -> None:
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text("seed: 1\ntraining: {stesp: 3}\n")
    line = refused(raysft_(command, str(sweep_file), "--with", str(overlay)))
    assert line == f"raysft: {overlay} line 2: training.stesp: 'stesp' is not a key here. Did you mean 'steps'?"


def test_check_refuses_what_does_not_fit_once_it_has_shown_why(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "sweeps" / "math.yaml"
    asked = ("check", str(file), "--set", f"output={tmp_path}/runs", "--device", "h100", "--price", "2.5")
    done = raysft_(*asked)
    assert done.returncode == 2
    assert done.stderr.startswith(f"raysft: {file}: 3 errors:\n  backbone 'qwen2.5-math-7b'")
    assert re.search(r"^cost +about [\d,]+, at 2.5 an hour", done.stdout, re.MULTILINE)
    more = raysft_(*asked, "--set", "workers.count=4")
    assert (more.returncode, more.stderr) == (0, "")
    line = refused(raysft_("check", str(file), "--device", "h10"))
    assert line == "raysft: --device h10: is not known. Did you mean 'H100'?"


def test_check_says_what_would_be_left_out(sweep_file: Path, additions: Path, tmp_path: Path) -> None:
    """The reason quotes the row, here with what rich would take for an end of its markup."""
    rows = tmp_path / "train.jsonl"
    rows.write_text((additions / "train.jsonl").read_text() + '{"[/b]": ":smile:"}\n')
    changed = ("--set", f"data.train.path={rows}", "--set", "data.max_bad=0.1")
    done = raysft_("check", str(sweep_file), *changed)
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    assert "left out training data: 1 of 65 samples cannot be read. The first:" in said
    assert "line 65: field 'prompt' is missing. Valid: [/b]." in said
    line = refused(raysft_("sweep", str(sweep_file), *changed[:2]))
    assert line.startswith(f"raysft: {rows} line 65: field 'prompt' is missing.")


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "train", "sweep"])
def test_a_bad_key_is_refused_in_one_line(sweep_file: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(sweep_file.read_text() + "trainig: {}\n")
    line = refused(raysft_(command, str(path)))
    number = len(path.read_text().splitlines())
    assert line == f"raysft: {path} line {number}: trainig: 'trainig' is not a key here. Did you mean 'training'?"


def test_several_errors_are_listed_below_each_other(sweep_file: Path) -> None:
    done = raysft_("check", str(sweep_file), "--set", "seed=-1", "--set", "export=bset")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"raysft: {sweep_file}: 2 errors:",
        "  --set seed=-1: must be at least 0, not -1. The default is 0.",
        "  --set export=bset: must be 'best', 'all' or 'none', not 'bset'. Did you mean 'best'?",
    ]


def test_an_unreadable_file_is_refused(sweep_file: Path) -> None:
    missing = sweep_file.with_name("tyni.yaml")
    line = refused(raysft_("check", str(missing)))
    assert line == f"raysft: {missing}: does not exist. Did you mean '{sweep_file}'?"
    line = refused(raysft_("check", str(sweep_file.parent)))
    assert line == f"raysft: {sweep_file.parent}: cannot be read: Is a directory. Name a readable YAML file."


POWER = "raysft: objective 'power'"
POWERS_KEYS = "Valid: exponent, final_exponent, keep, schedule, threshold, threshold_unit, type, upper."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backbone", "on"), "raysft: --backbone: 'on' is not in the file. Did you mean 'one'?"),
        (("--keep", "over"), f"{POWER} keep: must be 'above' or 'below', not 'over'. Did you mean 'above'?"),
        (("--threshold", "2"), f"{POWER} threshold: must be at most 1, not 2. The default is null."),
        (("--exponent", "nan"), f"{POWER} exponent: must be a finite number, not nan. The default is 0."),
        (("--objective", "fokal"), "raysft: objective 'fokal': is unknown. Did you mean 'focal'?"),
        (("--param", "gamma=2"), f"{POWER} gamma: 'gamma' is not a key here. {POWERS_KEYS}"),
        (
            ("--param", "gamma"),
            "raysft: --param gamma: is not of the form key=value. Write, for example, --param gamma=2.",
        ),
        (("--set", "x"), "raysft: --set x: is not of the form key=value. Write, for example, --set training.steps=20."),
    ],
)
def test_wrong_options_are_refused(sweep_file: Path, arguments: tuple[str, ...], said: str) -> None:
    assert refused(raysft_("train", str(sweep_file), "--in-process", *arguments)) == said


def test_bad_data_are_refused_before_a_library_is_imported(sweep_file: Path, additions: Path) -> None:
    process = start("train", str(sweep_file), "--set", "data.response=respones", options=("-X", "importtime"))
    done = finish(process)
    assert done.returncode == 2
    *imports, said = done.stderr.splitlines()
    assert f"{additions / 'train.jsonl'} line 1: field 'respones' is missing. Did you mean 'response'?" in said
    assert {line.rpartition("|")[2].strip() for line in imports}.isdisjoint({"torch", "ray", "transformers"})


@pytest.mark.parametrize(("arguments", "named"), [(("chekc",), "chekc"), (("check", "x.yaml", "--stes"), "--stes")])
def test_an_unknown_command_or_option_is_refused(arguments: tuple[str, ...], named: str) -> None:
    done = raysft_(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert named in done.stderr


ROWS = "train.jsonl"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{model}",), "advise: no data are named. Name them behind the model, or name a sweep file alone."),
        (("{model}", "{data}", "--set", "seed=1"), "--set, --with, --backbone: are of sweep files. Leave"),
        (("{model}", "{data}", "--template", "planet"), "--template: 'planet' is unknown. Did you mean 'plain'?"),
        (("{model}", "{data}", "--response", "respones"), "field 'respones' is missing. Did you mean 'response'?"),
        (("{model}", "{data}", "--subset", "main"), "is a file, which has no subsets. Leave it out."),
        (("{model}", "{data}x.jsonl"), "does not exist."),
        (("{model}", "no such data set"), "no such folder"),
        (("{model}x", "{data}"), "there is no such folder. Did you mean"),
        (("{sweep}", "{data}"), "is a sweep file, which names its data itself. Change it with --set."),
        (("{sweep}", "--backbone", "on"), "--backbone: 'on' is not in the file. Did you mean 'one'?"),
        (("nothing.yaml",), "nothing.yaml: does not exist."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_advised_on_is_refused(
    sweep_file: Path, tiny_backbone: Path, additions: Path, arguments: tuple[str, ...], said: str
) -> None:
    places = {"model": str(tiny_backbone), "data": str(additions / ROWS), "sweep": str(sweep_file)}
    assert said in refused(raysft_("advise", *(argument.format(**places) for argument in arguments)))


def test_advice_in_minutes_and_without_training(sweep_file: Path, tiny_backbone: Path, additions: Path) -> None:
    """By a model and a file, and by a sweep file: the same probe says the same."""
    output = ("--output", str(sweep_file.parent / "advice"))
    overlay = sweep_file.with_name("bf16.yaml")
    overlay.write_text("training: {precision: bf16}\n")
    started = [
        start("advise", str(tiny_backbone), str(additions / ROWS), "--samples", "64", *output),
        start("advise", str(sweep_file), "--with", str(overlay), "--set", f"output={output[1]}"),
    ]
    by_model, by_file = (finish(process) for process in started)
    assert (by_model.returncode, by_file.returncode) == (0, 0), by_model.stderr + by_file.stderr
    shown = [line for line in by_model.stdout.splitlines() if not line.startswith(("backbone", "next"))]
    assert "continuum   weak: capability 0.0" in shown[0]
    assert "1. " in shown[2]
    assert "rests on the figures of arXiv 2510.00526 alone" in by_model.stdout
    assert set(shown) <= set(by_file.stdout.splitlines()), by_file.stdout
    assert "space: {exponent: {low: 0.05, high: 0.5, log: true}}" in by_model.stdout
    assert f"raysft train {sweep_file} --with {overlay} --exponent" in by_file.stdout
    assert not list((sweep_file.parent / "advice").glob("**/mlflow.db")), "it writes no run"


# --- work in one process --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(sweep_file: Path) -> dict[str, Done]:
    """The second backbone trained and the first probed, side by side; then an evaluation of what was trained."""
    settings = ["--exponent", "0.5", "--threshold", "0.01", "--backbone", "two", "--set", "training.checkpoint_every=2"]
    started = {
        "train": start("train", str(sweep_file), "--in-process", *settings),
        "probe": start("probe", str(sweep_file)),
    }
    finished = {name: finish(process) for name, process in started.items()}
    assert {name: d.returncode for name, d in finished.items()} == {"train": 0, "probe": 0}, finished
    evaluated = raysft_("evaluate", str(sweep_file), "--model", str(trained_folder(finished["train"]) / "model"))
    assert evaluated.returncode == 0, evaluated.stderr
    return finished | {"evaluate": evaluated}


def trained_folder(done: Done) -> Path:
    """The folder that the last line of a training names."""
    return Path(done.stdout.splitlines()[-1].partition(": ")[2])


def test_train_reports_its_steps_and_keeps_everything_in_the_folder_it_names(
    done: dict[str, Done], sweep_file: Path
) -> None:
    *steps, last = done["train"].stdout.splitlines()
    assert [line.split()[1] for line in steps] == ["2/4", "4/4"]
    assert "eval/accuracy" in steps[-1]
    assert last.startswith("exponent 0.5, p >= 0.01: ")
    folder = trained_folder(done["train"])
    assert folder.is_relative_to(sweep_file.parent / "runs" / "tiny" / "two")
    trial = json.loads((folder / "trial.json").read_text())
    assert (trial["objective"]["exponent"], trial["objective"]["threshold"]) == (0.5, 0.01)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    assert {"result.json", "completions.jsonl.gz", "model"} <= {file.name for file in folder.iterdir()}


def test_the_exported_model_loads_and_differs_from_its_backbone(done: dict[str, Done], tiny_backbone: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained_folder(done["train"]) / "model"
    model, base = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tiny_backbone))
    tokens = AutoTokenizer.from_pretrained(folder)("1+2?", return_tensors="pt")["input_ids"]
    assert tokens.shape == (1, 4)
    with torch.no_grad():
        trained, untrained = model(tokens).logits, base(tokens).logits
    assert trained.shape == untrained.shape
    assert not torch.allclose(trained, untrained, atol=1e-3)


def test_evaluating_the_exported_model_gives_the_trials_own_scores(done: dict[str, Done]) -> None:
    printed = dict(line.split() for line in done["evaluate"].stdout.splitlines())
    result = json.loads((trained_folder(done["train"]) / "result.json").read_text())
    scores = {name: f"{value:.4f}" for name, value in result["metrics"].items() if name.startswith("eval/")}
    assert {"eval/nll", "eval/accuracy", "eval/mean_probability"} <= scores.keys()
    assert printed == scores


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> tuple[Path, Done, Done]:
    """A model asked a task of one's own, then its records scored anew by another rule. The folder, and both outputs."""
    folder = tmp_path_factory.mktemp("asked")
    rows = [{"question": f"{a}+1?", "answer": f"{a + 1}"} for a in range(1, 6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"source: {{kind: file, path: {folder}/rows.jsonl}}\nanswer_pattern: ^(.)\nmax_new_tokens: 8\n"
    (folder / "mine.yaml").write_text(task)
    options = ["--task", str(folder / "mine.yaml"), "--set", "samples=8", "--output", str(folder / "runs")]
    evaluated = raysft_("evaluate", str(tiny_backbone), *options, "--precision", "fp32")
    assert evaluated.returncode == 0, evaluated.stderr
    records = folder / "runs" / "evaluation" / tiny_backbone.name / "completions.jsonl.gz"
    again = raysft_("rescore", str(records), "--task", str(folder / "mine.yaml"), "--set", r"answer_pattern=(\d)")
    assert again.returncode == 0, again.stderr
    return records.parent, evaluated, again


def test_any_model_is_asked_a_task_of_ones_own(asked: tuple[Path, Done, Done]) -> None:
    from mlflow import MlflowClient

    folder, done, _ = asked
    *lines, last = done.stdout.splitlines()
    printed = dict(line.split() for line in lines)
    scores = json.loads((folder / "scores.json").read_text())
    assert printed == {name: f"{value:.4f}" for name, value in scores.items()}
    assert {"eval/mine/accuracy", "eval/mine/accuracy_se", "eval/mine/pass_at_8", "eval/accuracy"} <= scores.keys()
    *going, end = done.stderr.splitlines()
    assert end == "mine: 5/5 problems"
    assert all(re.fullmatch(r"mine: [1-4]/5 problems, \d+ s left", line) for line in going)
    uri = re.search(r"MLflow: (\S+), experiment evaluation", last)
    assert uri is not None
    client = MlflowClient(uri[1])
    (run,) = client.search_runs([client.get_experiment_by_name("evaluation").experiment_id])
    assert run.data.metrics == pytest.approx(scores)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "completions.json",
        "completions.jsonl.gz",
    }


def test_records_are_scored_anew_without_the_model(asked: tuple[Path, Done, Done]) -> None:
    from raysft.records import read_records

    folder, _, done = asked
    before, after = (read_records(folder / name) for name in ("completions.jsonl.gz", "rescored.jsonl.gz"))
    assert [r["completion"] for r in after] == [r["completion"] for r in before]
    assert len(after) == 40
    expected = sum(re.findall(r"\d", r["completion"])[-1:] == [r["reference"]] for r in before) / 40
    assert 0 < expected < 1
    assert ["eval/mine/accuracy", f"{expected:.4f}"] in [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.splitlines()[-1] == f"Records: {folder}/rescored.jsonl.gz"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "MODEL"), r"evaluate: no task is named. Name some with --task: aime24, .*, or a file."),
        (("evaluate", "MODEL", "--task", "gsm"), r"--task gsm: 'gsm' is no built-in task. Did you mean 'gsm8k'\? .*"),
        (("evaluate", "./nowhere", "--task", "gsm8k"), r"model './nowhere': there is no such folder.*"),
        (("evaluate", "MODEL", "--task", "gsm8k", "--template", "qwn"), r"--template: 'qwn' .* Did you mean 'qwen'\?"),
        (("evaluate", "MODEL", "--task", "gsm8k", "--precision", "fp8"), r"--precision: 'fp8' is unknown. .*"),
        (("evaluate", "MODEL", "--task", "gsm8k", "--with", "FILE"), r"--with: is of sweep files. Leave it out, or .*"),
        (("evaluate", "FILE", "--task", "gsm8k"), r".*/tiny.yaml: is a sweep file, which has tasks of its own. .*"),
        (("rescore", "FILE"), r".*/tiny.yaml: cannot be read as records: not JSON lines. .*"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    sweep_file: Path, tiny_backbone: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    named = {"MODEL": str(tiny_backbone), "FILE": str(sweep_file)}
    words = [named.get(word, word) for word in arguments]
    output = ["--output", str(tmp_path)] if arguments[0] == "evaluate" else []
    assert re.fullmatch(f"raysft: {said}", refused(raysft_(*words, *output)))
    assert list(tmp_path.iterdir()) == []


def test_records_of_held_out_data_need_a_task_to_be_scored_by(done: dict[str, Done]) -> None:
    records = trained_folder(done["train"]) / "completions.jsonl.gz"
    assert "are of no task. Name the task whose scorer judges them" in refused(raysft_("rescore", str(records)))


def test_probe_prints_the_capability(done: dict[str, Done], sweep_file: Path, tiny_backbone: Path) -> None:
    from raysft.inprocess import bench_here

    printed = dict(re.split(r" {2,}", line, maxsplit=1) for line in done["probe"].stdout.splitlines())
    assert printed["backbone"] == f"one ({tiny_backbone})"
    capability = bench_here(load(sweep_file).for_backbone("one")).probe()
    assert printed["capability"].startswith(f"{capability.mean_probability:.4f} ")
    assert printed["probed"] == f"64 samples, {capability.tokens} supervised tokens"


def test_work_that_succeeds_says_nothing_on_stderr(done: dict[str, Done]) -> None:
    assert {name: done[name].stderr for name in ("train", "probe")} == {"train": "", "probe": ""}
    *going, end = done["evaluate"].stderr.splitlines()
    assert end == "generation: 4/4 problems"
    assert all(re.fullmatch(r"generation: [1-3]/4 problems, \d+ s left", line) for line in going)


def test_sigterm_ends_a_background_job_too() -> None:
    """A script's background jobs begin with SIGINT ignored."""
    code = (
        "import signal, time; from raysft import cli; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "cli.app = lambda: (print('up', flush=True), time.sleep(100)); cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "raysft: interrupted\n")
