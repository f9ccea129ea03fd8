"""`raysft advise`: probe a backbone on data in this process, and say what to try first before any trial is paid for."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysft.advisor import Advice, Choice, advise
from raysft.capability import Capability
from raysft.config import SweepConfig, Template
from raysft.errors import InputError
from raysft.preflight import has_chat_template
from raysft.sweepfile import validated

Say = Callable[[str], None]

BARS = " ▁▂▃▄▅▆▇█"
ENDINGS = (".jsonl", ".json", ".parquet")


def config_of(
    model: str,
    data: str,
    fields: dict[str, str | None],
    template: Template | None,
    split: str,
    subset: str | None,
    samples: int,
    output: Path,
    tracking: str | None,
) -> SweepConfig:
    """A sweep of one backbone, as far as a probe needs it. data: a file, or the hub id of a data set.

    fields: those of data's prompt, response and messages. Raises InputError.
    """
    is_file = data.lower().endswith(ENDINGS)
    if is_file and subset is not None:
        raise InputError("--subset", f"'{data}' is a file, which has no subsets.", "Leave it out.")
    source: dict[str, str] = {"path": data} | ({"kind": "file"} if is_file else {"kind": "hub", "split": split})
    if subset is not None:
        source["subset"] = subset
    default = "plain" if Path(model).is_dir() and not has_chat_template(Path(model)) else "chat"
    values: dict[str, Any] = {
        "name": "advise",
        "output": str(output),
        "backbones": [{"name": "model", "path": model}],
        "data": {
            "train": source,
            "heldout": source,  # nothing is held out; the probe alone reads the data
            "heldout_samples": 1,
            "train_samples": samples,
            "template": template or default,
            **{key: field for key, field in fields.items() if field is not None},
        },
        "probe": {"samples": samples},
        "search": {"metric": "eval/nll"},
        "tracking": {"uri": tracking},
    }
    return validated(SweepConfig, values, "advise").for_backbone("model")


def advise_here(config: SweepConfig, say: Say, words: Sequence[str] = ()) -> Advice:
    """Print and return the advice for a study. words: those that name the sweep file and its overlays in a command."""
    from raysft.evidence import earlier_studies
    from raysft.inprocess import bench_here

    bench = bench_here(config)
    for note in bench.notes():
        say(note)
    capability = bench.probe()
    evidence, unread = earlier_studies(config)
    advice = advise(capability, evidence)
    say(f"backbone    {config.backbone.path}, {capability.tokens} supervised tokens of {capability.samples} samples")
    for line in told(advice, capability, unread):
        say(line)
    say("next        " + "\n            ".join(_next(advice, words)))
    return advice


def told(advice: Advice, capability: Capability, unread: str | None = None) -> list[str]:
    """The advice in lines; unread: why no earlier study is taken into account."""
    lines = [
        f"continuum   {advice.regime}: capability {advice.capability:.3f}, "
        f"p >= .55 in {capability.share_above:.0%} of the tokens",
        f"p           0 {_bars(capability.histogram)} 1   median {capability.quantile(0.5):.2g}",
        "try first   " + _row(1, advice.choices[0]),
        *("            " + _row(rank, choice) for rank, choice in enumerate(advice.choices[1:], start=2)),
        f"confidence  {advice.confidence}: {_grounds(advice)}",
    ]
    return lines + ([f"            {unread}"] if unread else [])


def _row(rank: int, choice: Choice) -> str:
    return f"{rank}. {choice.objective.label():15}  {choice.expected:4.0%} of the best, +/- {choice.spread:.0%}"


def _bars(histogram: Sequence[int]) -> str:
    most = max(histogram)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in histogram)


def _grounds(advice: Advice) -> str:
    if not advice.studies:
        return "no earlier study of yours counts here; it rests on the figures of arXiv 2510.00526 alone"
    return f"your studies near this capability weigh {advice.own:.1f}; the nearest: {', '.join(advice.studies)}"


def _next(advice: Advice, words: Sequence[str]) -> list[str]:
    lines = []
    if words:
        lines += [shlex.join(["raysft", "sweep", *words]) + "     (begins with these, the baselines apart)"]
        lines += [shlex.join(["raysft", "train", *words, "--exponent", f"{advice.exponent:g}"])]
    return [*lines, f"in a sweep file: space: {{{', '.join(_space(advice))}}}"]


def _space(advice: Advice) -> list[str]:
    """The exponents from half the smallest promising one to twice the largest, and thresholds where one promises."""
    near = [objective.exponent for objective in advice.promising() if objective.threshold is None]
    low, high = max(0.05, min(near) / 2), min(10.0, max(0.2, max(near) * 2))
    space = [f"exponent: {{low: {low:g}, high: {high:g}, log: true}}"]
    if any(objective.threshold is not None for objective in advice.promising()):
        space.append("threshold: {low: 0.05, high: 0.5}")
    return space
