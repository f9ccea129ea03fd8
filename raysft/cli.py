"""The command line. Imports nothing heavy until a command needs it, so that --help and check answer at once."""

import errno
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from raysft import __version__
from raysft.devices import UTILISATION
from raysft.errors import InputError, TrialFailed
from raysft.redaction import holds_secret, redacted
from raysft.store import StorageLost

if TYPE_CHECKING:
    from raysft.config import SweepConfig
    from raysft.objectives import Selection

app = typer.Typer(
    help="Finds which SFT objective a backbone wants: a distributed sweep over probability-based objectives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _no_secret(uri: str | None) -> str | None:
    """Raises InputError for an address with a password, which every user of this machine could read."""
    if uri is not None and holds_secret(uri):
        from raysft.sweepfile import SECRETS

        raise InputError("--tracking", "holds a password or token, which the list of processes shows.", SECRETS)
    return uri


File = Annotated[Path, typer.Argument(help="sweep file (YAML)", show_default=False)]
Sets = Annotated[list[str], typer.Option("--set", help="override a value, e.g. training.steps=20 (repeatable)")]
Overlays = Annotated[
    list[Path], typer.Option("--with", help="overlay: YAML whose keys replace the file's, before --set (repeatable)")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS, else this machine alone")]
Resume = Annotated[bool, typer.Option("--resume", help="continue an interrupted run")]
Backbone = Annotated[str | None, typer.Option(help="name of a backbone in the file; default: the first")]
Tracking = Annotated[
    str | None, typer.Option(callback=_no_secret, help="MLflow tracking URI; default: sqlite in the output")
]

FAILED, REFUSED = 1, 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for models, runs and results")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="of backbones, data and training")] = 0,
    resume: Resume = False,
    only_materials: Annotated[
        bool, typer.Option("--only-materials", help="make backbones and data, do not sweep")
    ] = False,
    sets: Sets = [],  # noqa: B006
) -> None:
    """The capability continuum in miniature, offline, in minutes: makes three backbones and sweeps each."""
    from raysft.quiet import libraries_quiet, libraries_to

    libraries_to(output / "demo" / "raysft.log")
    libraries_quiet()
    from raysft.demo import make_demo
    from raysft.sweepfile import load
    from raysft.sweeping import run

    _say(f"Making the demo's backbones and data under {output}/demo-materials (seed {seed}) ...")
    file = make_demo(output / "demo-materials", seed, _say)
    if only_materials:
        _say(f"Made {file}. Sweep it with: raysft sweep {file}")
        return
    config = load(file, [f"output={output}", f"seed={seed}", *sets])
    raise typer.Exit(run(config, resume))


@app.command()
def check(
    file: File,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="GPU to estimate time for, and whether it fits: h100")] = None,
    utilisation: Annotated[float, typer.Option(help="of what its maker states", min=0.01, max=1)] = UTILISATION,
    price: Annotated[float | None, typer.Option(help="of an hour of one device", min=0)] = None,
    address: Annotated[str | None, typer.Option(help="a running Ray cluster, which is looked at, too")] = None,
) -> None:
    """Validate a sweep file, say what it would run, and estimate its memory, time and cost. Starts nothing."""
    from rich.console import Console
    from rich.table import Table

    from raysft.checking import check_here
    from raysft.sweepfile import load, together

    rows, refused = check_here(load(file, sets, overlays), address, device, utilisation, price)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    Console(markup=False, emoji=False).print(table)  # values may quote what a file holds
    if refused:
        raise together(file, refused)


@app.command()
def sweep(
    file: File,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Search the objective for each backbone of a sweep file."""
    from raysft.sweeping import run

    raise typer.Exit(run(_checked(file, sets, overlays), resume, address))


@app.command()
def train(
    file: File,
    objective: Annotated[str, typer.Option(help="power, focal, dft, ...")] = "power",
    param: Annotated[list[str], typer.Option(help="of the objective, e.g. gamma=2; may be repeated")] = [],  # noqa: B006
    exponent: Annotated[float | None, typer.Option(help="of power: 0 is -log p, 1 is -p")] = None,
    threshold: Annotated[float | None, typer.Option(help="probability; none by default")] = None,
    upper: Annotated[float | None, typer.Option(help="probability above which nothing is learned")] = None,
    keep: Annotated[str, typer.Option(help="above or below the threshold")] = "above",
    backbone: Backbone = None,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    resume: Resume = False,
    address: Address = None,
    in_process: Annotated[bool, typer.Option(help="without Ray and DeepSpeed, in this process")] = False,
) -> None:
    """Train one objective on one backbone, with the sweep file's data and settings."""
    from raysft.config import TrialConfig
    from raysft.sweeping import run

    values = {"threshold": threshold, "upper": upper, "keep": keep, "exponent": exponent}
    chosen = _objective(objective, {k: v for k, v in values.items() if v is not None}, param)
    config = _one_backbone(_checked(file, sets, overlays), backbone)
    study = config.for_backbone(config.backbones[0].name)
    rate = study.training.learning_rate
    trial = TrialConfig(objective=chosen, learning_rate=rate, seed=study.seed, role="train")
    if in_process:
        from raysft.inprocess import train_here

        train_here(study, trial, _say)
        return
    alone = config.search.model_copy(update={"trials": 0})
    single = {"name": f"{config.name}-{trial.name()}", "search": alone, "confirm": None, "export": "all"}
    config = config.model_copy(update=single)
    raise typer.Exit(run(config, resume, address, lambda study: [trial]))


@app.command()
def probe(
    file: File,
    backbone: Backbone = None,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
) -> None:
    """Measure a backbone's capability on the file's training data, in this process."""
    from raysft.inprocess import probe_here

    config = _one_backbone(_checked(file, sets, overlays), backbone)
    probe_here(config.for_backbone(config.backbones[0].name), _say)


@app.command()
def advise(
    what: Annotated[str, typer.Argument(help="a model (folder or hub id), or a sweep file", show_default=False)],
    data: Annotated[
        str | None, typer.Argument(help="with a model: JSONL, JSON or Parquet file, or hub data set")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="field of the data; default: prompt")] = None,
    response: Annotated[str | None, typer.Option(help="field of the data; default: response")] = None,
    messages: Annotated[str | None, typer.Option(help="field with chat messages, instead of these")] = None,
    template: Annotated[str | None, typer.Option(help="as data.template; default: chat, or plain without one")] = None,
    split: Annotated[str, typer.Option(help="of a hub data set")] = "train",
    subset: Annotated[str | None, typer.Option(help="of a hub data set")] = None,
    samples: Annotated[int, typer.Option(min=1, help="that are probed, of a model's data")] = 512,
    output: Annotated[Path, typer.Option(help="folder whose MLflow runs are the evidence")] = Path("runs"),
    tracking: Tracking = None,
    backbone: Backbone = None,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
) -> None:
    """Which objective to try first: from a probe and from what earlier sweeps found. Minutes, no training."""
    file = Path(what) if what.endswith((".yaml", ".yml")) else None
    if file is None:
        from raysft.preflight import check_data, check_model

        _one_of("--template", template, [*_templates(), None])
        if data is None:
            raise InputError("advise", "no data are named.", "Name them behind the model, or name a sweep file alone.")
        if sets or overlays or backbone is not None:
            fix = "Leave them out, or name a sweep file."
            raise InputError("--set, --with, --backbone", "are of sweep files.", fix)
        from raysft.advising import advise_here, config_of

        check_model(what)
        fields = {"prompt": prompt, "response": response, "messages": messages}
        study = config_of(what, data, fields, template, split, subset, samples, output, tracking)  # type: ignore[arg-type]
        check_data(study.data)
        advise_here(study, _say)
        return
    if data is not None or prompt or response or messages or template or subset or tracking:
        raise InputError(what, "is a sweep file, which names its data itself.", "Change it with --set.")
    from raysft.advising import advise_here

    config = _one_backbone(_checked(file, sets, overlays), backbone)
    words = [what, *(word for overlay in overlays for word in ("--with", str(overlay)))]
    advise_here(config.for_backbone(config.backbones[0].name), _say, words)


@app.command()
def evaluate(
    what: Annotated[str, typer.Argument(help="a model (folder or hub id), or a sweep file", show_default=False)],
    task: Annotated[list[str], typer.Option(help="built-in name or YAML file; may be repeated")] = [],  # noqa: B006
    lm_eval: Annotated[list[str], typer.Option(help="task of lm-evaluation-harness; may be repeated")] = [],  # noqa: B006
    sets: Annotated[
        list[str], typer.Option("--set", help="of every task, e.g. samples=4; with a sweep file, of the file")
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="folder for records, scores and the MLflow run")] = Path("runs"),
    template: Annotated[str | None, typer.Option(help="as data.template; default: chat, or plain without one")] = None,
    revision: Annotated[str | None, typer.Option(help="of a hub id")] = None,
    precision: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    tracking: Tracking = None,
    overlays: Overlays = [],  # noqa: B006
    model: Annotated[str | None, typer.Option(help="with a sweep file: whose scores; default: its backbone")] = None,
    backbone: Backbone = None,
) -> None:
    """Ask a model the problems of tasks; with a sweep file, evaluate as that file says."""
    if what.endswith((".yaml", ".yml")):
        from raysft.inprocess import evaluate_here

        if task or lm_eval:
            fix = "Name the tasks in the file's evaluation.tasks, or name a model instead of the file."
            raise InputError(what, "is a sweep file, which has tasks of its own.", fix)
        config = _one_backbone(_checked(Path(what), sets, overlays), backbone)
        evaluate_here(config.for_backbone(config.backbones[0].name), model, _say)
        return
    if overlays:
        raise InputError("--with", "is of sweep files.", "Leave it out, or name a sweep file instead of the model.")
    if not task and not lm_eval:
        from raysft.config import builtin_tasks

        fix = f"Name some with --task: {', '.join(builtin_tasks())}, or a file."
        raise InputError("evaluate", "no task is named.", fix)
    from raysft.config import BackboneConfig
    from raysft.modelscores import evaluate_model
    from raysft.sweepfile import load_tasks

    _one_of("--template", template, [*_templates(), None])
    _one_of("--precision", precision, ["bf16", "fp32"])
    named = BackboneConfig(name="model", path=what, revision=revision)
    tasks = load_tasks(task, sets)
    evaluate_model(named, tasks, lm_eval, output, _say, template, precision, seed, tracking)  # type: ignore[arg-type]


def _templates() -> list[str]:
    from raysft.config import Template

    return list(get_args(Template))


def _one_of(option: str, value: str | None, valid: list[str | None]) -> None:
    from raysft.errors import did_you_mean

    if value not in valid:
        names = [name for name in valid if name is not None]
        raise InputError(option, f"'{value}' is unknown.", did_you_mean(str(value), names))


@app.command()
def rescore(
    records: Annotated[Path, typer.Argument(help="a completions.jsonl.gz of a trial or of raysft evaluate")],
    task: Annotated[str | None, typer.Option(help="that judges all of them; default: each record's own")] = None,
    sets: Annotated[list[str], typer.Option("--set", help="of the task, e.g. tolerance=0")] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="default: rescored.jsonl.gz beside the records")] = None,
) -> None:
    """Judge recorded answers anew, without generating again."""
    from raysft.modelscores import rescore as judge_anew
    from raysft.records import read_records
    from raysft.sweepfile import load_tasks

    names = list(dict.fromkeys(record["task"] for record in read_records(records)))
    if task is None and "generation" in names:
        fix = "Name the task whose scorer judges them: --task gsm8k, or a file."
        raise InputError(str(records), "holds answers to held-out data, which are of no task.", fix)
    tasks = load_tasks([task] if task else names, sets)
    by_name = dict.fromkeys(names, next(iter(tasks.values()))) if task else tasks
    judge_anew(records, by_name, output or records.with_name("rescored.jsonl.gz"), _say)


@app.command()
def ui(
    target: Annotated[
        str | None, typer.Argument(help="sweep file, folder such as runs/demo, or experiment; default: all of ./runs")
    ] = None,
    port: Annotated[int, typer.Option(help="on 127.0.0.1", min=1, max=65535)] = 5000,
    tracking: Annotated[
        str | None, typer.Option(callback=_no_secret, help="MLflow tracking URI; default: where the target's runs lie")
    ] = None,
) -> None:
    """Compare the runs in MLflow's pages, served on this machine until Ctrl-C."""
    from raysft.ui import show

    show(target, tracking, port, _say)


@app.command()
def report(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="sweep files, sweeps' folders (runs/NAME) or MLflow experiments; default: the newest under runs",
            show_default=False,
        ),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            callback=_no_secret, help="MLflow tracking URI; default: the sweep's own, else MLFLOW_TRACKING_URI"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder; default: report in the sweep's folder")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="keep the report in MLflow, too")] = True,
) -> None:
    """Say which objective each backbone wants, on one page with figures and costs."""
    from raysft.report import report as write_report

    write_report(targets or [], output, tracking, log, _say)


@app.command()
def submit(
    file: File,
    overlays: Overlays = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    resume: Resume = False,
    address: Annotated[str, typer.Option(help="the cluster's dashboard")] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option(help="follow the job's output until it ends")] = True,
) -> None:
    """Run a sweep as a Ray job on a cluster: `ray job submit` with this folder as its working directory."""
    from raysft.submit import submit_sweep

    _checked(file, sets, overlays)
    raise typer.Exit(submit_sweep(file, sets, overlays, resume, address, wait, _say))


@app.command()
def schema() -> None:
    """Print the JSON schema of a sweep file."""
    from raysft.sweepfile import schema as json_schema

    print(json_schema())


def _version(value: bool) -> None:
    if value:
        print(f"raysft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Exit codes: 0 done, 1 a trial or run failed, 2 the input was refused."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except InputError as error:
        print(f"raysft: {redacted(str(error))}", file=sys.stderr)
        sys.exit(REFUSED)
    except TrialFailed as error:
        print(f"raysft: {redacted(str(error))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("raysft: interrupted", file=sys.stderr)
        sys.exit(FAILED)
    except Exception as error:
        if (known := _of_disk_or_bucket(error)) is not None:
            fix = "" if isinstance(known, StorageLost) else "Free some space; "
            fix += "what was written is whole, and a sweep goes on with --resume."
            print(f"raysft: {redacted(str(known))}. {fix[0].upper()}{fix[1:]}", file=sys.stderr)
        else:
            print(redacted(traceback.format_exc()), file=sys.stderr, end="")
        sys.exit(FAILED)


def _of_disk_or_bucket(error: BaseException | None) -> OSError | None:
    """The error that this one came from; Tune hands on what breaks its callbacks as an error of its own."""
    while error is not None:
        if isinstance(error, StorageLost) or (isinstance(error, OSError) and error.errno in DISK_FULL):
            return error
        error = error.__cause__ or error.__context__
    return None


def _terminated(*_: object) -> None:
    """`ray job stop` and schedulers send SIGTERM; Tune saves its state on SIGINT, which a script's jobs may ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


def _say(text: str) -> None:
    print(redacted(text), flush=True)


def _checked(file: Path, sets: list[str], overlays: list[Path]) -> "SweepConfig":
    from raysft.check import check as check_config
    from raysft.sweepfile import load

    config = load(file, sets, overlays)
    check_config(config)
    return config


def _objective(name: str, values: dict[str, Any], params: list[str]) -> "Selection":
    from raysft.objectives import build
    from raysft.yamltext import parse

    for text in params:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--param {text}", "is not of the form key=value.", "Write, for example, --param gamma=2.")
        values[key] = parse(value, f"--param {text}").values
    return build(name, **values)


def _one_backbone(config: "SweepConfig", name: str | None) -> "SweepConfig":
    from raysft.errors import did_you_mean

    names = [b.name for b in config.backbones]
    if name is not None and name not in names:
        raise InputError("--backbone", f"'{name}' is not in the file.", did_you_mean(name, names))
    chosen = config.backbones[names.index(name) if name else 0]
    return config.model_copy(update={"backbones": [chosen]})


if __name__ == "__main__":
    main()
