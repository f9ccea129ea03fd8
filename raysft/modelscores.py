"""Scores of any model on tasks, without a sweep file, and of answers that were recorded."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from raysft.config import BackboneConfig, TaskConfig, Template
from raysft.preflight import check_inside, check_model, check_output, check_tasks
from raysft.progress import duration
from raysft.redaction import redacted

Say = Callable[[str], None]

RECORDS, SCORES = "completions.jsonl.gz", "scores.json"
TOKENS_AT_ONCE = 4096  # of a forward pass over options


def evaluate_model(
    model: BackboneConfig,
    tasks: dict[str, TaskConfig],
    lm_eval: Sequence[str],
    output: Path,
    say: Say,
    template: Template | None = None,
    precision: str = "bf16",
    seed: int = 0,
    tracking: str | None = None,
) -> dict[str, float]:
    """Ask a model; its records and scores lie in a folder of its name under output/evaluation, and in MLflow.

    lm_eval: tasks of lm-evaluation-harness. template: for tasks that name none; None: the tokenizer's own chat
    template, or plain text where it has none. Raises InputError for what cannot run, before anything is loaded.
    """
    folder = scores_folder(output, model.path)
    title = folder.name
    check_output(folder)
    check_inside(output, [folder])
    check_model(model.path)
    check_tasks(tasks)
    from raysft.tracking import Evaluations

    evaluations = Evaluations(output, tracking)
    metrics = _asked(model, tasks, folder, template, precision, seed) if tasks else {}
    if lm_eval:
        from raysft.lmeval import lm_eval_scores

        metrics |= lm_eval_scores(model, lm_eval, precision, seed)
    say_metrics(metrics, say)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORES).write_text(json.dumps(metrics, indent=1))
    params = {"model": model.path, "revision": model.revision, "precision": precision, "seed": seed}
    params |= {"template": template} | {f"task/{name}": task.model_dump_json() for name, task in tasks.items()}
    evaluations.log(title, params, metrics, folder / RECORDS if tasks else None)
    say(f"Records and scores: {folder}; MLflow: {redacted(evaluations.uri)}, experiment evaluation")
    return metrics


def scores_folder(output: Path, model: str) -> Path:
    """A model's, by the name of its folder or its hub id."""
    name = Path(model).resolve().name if Path(model).is_dir() else model.replace("/", "--")
    return output / "evaluation" / (name or "root")


def _asked(
    backbone: BackboneConfig,
    tasks: dict[str, TaskConfig],
    folder: Path,
    template: Template | None,
    precision: str,
    seed: int,
) -> dict[str, float]:
    import torch

    from raysft.backbone import load_model, load_tokenizer, pack
    from raysft.evaluation import ask, load_tasks, write_records
    from raysft.quiet import libraries_quiet
    from raysft.ranks import Ranks

    libraries_quiet()
    tokenizer, model = load_tokenizer(backbone), load_model(backbone, precision)
    problems = load_tasks(model, tokenizer, tasks, template or ("chat" if tokenizer.chat_template else "plain"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pack(model.to(device))  # type: ignore[arg-type]
    evaluation = ask(model, tokenizer, problems, TOKENS_AT_ONCE, Ranks(), device, seed, told)
    folder.mkdir(parents=True, exist_ok=True)
    write_records(evaluation.records, folder / RECORDS)
    return evaluation.metrics


def rescore(path: Path, tasks: dict[str, TaskConfig], output: Path, say: Say) -> dict[str, float]:
    """Judge recorded answers anew. tasks: by the name that the records have for theirs, all of which are there."""
    from raysft.evaluation import build_scorer, read_records, rescored, summarised, write_records

    records = read_records(path)
    judged = []
    for name, task in tasks.items():
        judged += rescored([r for r in records if r["task"] == name], build_scorer(task, task.source))
    evaluation = summarised(judged)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_records(evaluation.records, output)
    say_metrics(evaluation.metrics, say)
    say(f"Records: {output}")
    return evaluation.metrics


def say_metrics(metrics: dict[str, float], say: Say) -> None:
    width = max(24, *map(len, metrics))
    for name, value in metrics.items():
        say(f"{name:{width}} {value:.4f}")


def told(task: str, done: int, total: int, seconds: float) -> None:
    """How far an evaluation is, apart from its result."""
    left = f", {duration(seconds)} left" if done < total else ""
    print(f"{task}: {done}/{total} problems{left}", file=sys.stderr, flush=True)
