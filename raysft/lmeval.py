"""Tasks of lm-evaluation-harness, for everything that is no task here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysft.config import BackboneConfig
from raysft.errors import InputError

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def lm_eval_scores(
    backbone: BackboneConfig, names: Sequence[str], precision: str, seed: int, batch_size: int = 16
) -> dict[str, float]:
    """Scores as `eval/lm-eval/TASK/METRIC`. names: the harness's own, or YAML files that are named like their task.

    Raises InputError where lm-eval is missing or refuses a task.
    """
    try:
        import lm_eval
        import torch
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        fix = "Install it: pip install 'raysft[lm-eval]'."
        raise InputError("--lm-eval", f"needs lm-eval, which cannot be imported ({error}).", fix) from None
    files = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    folders = sorted({str(file.parent.absolute()) for file in files})
    try:
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args={
                "pretrained": backbone.path,
                "revision": backbone.revision or "main",
                "trust_remote_code": backbone.trust_remote_code,
                "dtype": DTYPES[precision],
            },
            tasks=[Path(name).stem if Path(name) in files else name for name in names],
            task_manager=TaskManager(include_path=folders or None),
            batch_size=batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            random_seed=seed,
            log_samples=False,
        )
    except (KeyError, ValueError, OSError) as error:  # how it refuses unknown tasks and data it cannot load
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300].rstrip(".")
        raise InputError(
            f"--lm-eval {','.join(names)}", f"lm-eval refuses: {reason}.", "See lm-eval ls tasks."
        ) from None
    return flat(found["results"])


def flat(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{task: {"acc,none": 0.5}} -> {"eval/lm-eval/task/acc": 0.5}; a filter other than none stays in the name."""
    scores = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, _, rule = key.partition(",")
            if isinstance(value, int | float) and rule:
                scores[f"eval/lm-eval/{task}/{metric}" + (f"-{rule}" if rule != "none" else "")] = float(value)
    return scores
