"""LoRA trials in turn and side by side on one base model: seconds of the same trials, and how far their losses differ.

Without Ray, in this process, round by round; only training is timed, no start and no evaluation.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from telling import machine, number, table, told, write
from train_inputs import Shape, make_backbone

from raysft.config import PAPER_BASELINES, Job, SweepConfig, TrialConfig
from raysft.data.order import SampleOrder
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.trial import Bench

LONGEST = 1024


def main() -> None:
    args = _arguments()
    libraries_quiet()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine(threads=args.threads, device=device.type)
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())), flush=True)
    rows, found = [], []
    with tempfile.TemporaryDirectory(prefix="bench-lanes-") as temporary:
        folder = Path(temporary)
        backbone = args.backbone or make_backbone(folder / "backbone", Shape(), LONGEST)
        for samples in args.samples:
            config = study(backbone, args, samples, folder)
            found.append({"samples": samples, **measured(config, args, folder / str(samples), device)})
            forms = {"tokens": ".0f", "in turn": ".2f", "side by side": ".2f", "ratio": ".2f", "differ": ".1e"}
            rows.append([f"{samples} samples", *(number(found[-1][key], form) for key, form in forms.items())])
            print(told(f"{samples} samples a step: {number(found[-1]['ratio'], '.2f')} times as fast"), flush=True)
    head = [f"{args.lanes} trials", "tokens a step", "in turn s", "side by side s", "ratio", "losses differ by"]
    print("\n" + table(head, rows))
    write(args.json, {"machine": facts, "settings": {k: str(v) for k, v in vars(args).items()}, "found": found})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="folder; without it, random weights of SmolLM2-135M's shape")
    parser.add_argument("--data", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--template", default="chat", help="as data.template of a sweep file")
    parser.add_argument("--max-length", type=int, default=LONGEST, help="tokens")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 16], help="of an optimizer step")
    parser.add_argument("--lanes", type=int, default=4, help="trials")
    parser.add_argument("--steps", type=int, default=3, help="of a trial")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="rounds; every other one in the other order")
    parser.add_argument("--json", type=Path, default=Path("build/bench-lanes.json"), help="where everything is written")
    return parser.parse_args()


def study(backbone: Path, args: argparse.Namespace, samples: int, folder: Path) -> SweepConfig:
    values = {
        "name": "lanes",
        "output": str(folder / "runs"),
        "backbones": [{"name": "backbone", "path": str(backbone)}],
        "data": {
            "train": {"kind": "file", "path": str(args.data)},
            "prompt": "question",
            "response": "answer",
            "template": args.template,
            "max_length": args.max_length,
            "heldout_samples": 2,
            "train_samples": 256,
        },
        "training": {
            "steps": args.steps,
            "global_batch_size": samples,
            "precision": args.precision,
            "lora": {"rank": args.rank, "alpha": 2 * args.rank},
            "checkpoint_every": args.steps,
        },
        "search": {"metric": "eval/nll"},
    }
    return SweepConfig.model_validate(values)


def measured(config: SweepConfig, args: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, Any]:
    """Medians over the rounds; differ: the largest relative difference between two losses of one trial."""
    ways = {"in turn": 1, "side by side": args.lanes}
    benches = {way: bench_of(config, lanes, device) for way, lanes in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {}
    for turn in range(-1, args.repeats):  # the first round warms up
        for way in ways if turn % 2 == 0 else reversed(ways):
            taken, losses[way] = run(benches[way], args.lanes, folder / f"{way}-{turn}")
            if turn >= 0:
                seconds[way].append(taken)
    medians = {way: median(taken) for way, taken in seconds.items()}
    pairs = zip(losses["in turn"], losses["side by side"], strict=True)
    lengths = benches["in turn"].train.lengths
    order = SampleOrder(len(lengths), config.training.global_batch_size, seed=0)
    return {
        **medians,
        "seconds": seconds,
        "ratio": medians["in turn"] / medians["side by side"],
        "differ": max(abs(one - other) / abs(one) for one, other in pairs),
        "tokens": sum(float(lengths[order.at(step)].sum()) for step in range(args.steps)) / args.steps,
    }


def bench_of(config: SweepConfig, lanes: int, device: torch.device) -> Bench:
    workers = config.workers.model_copy(update={"lanes": lanes})
    return Bench(config.model_copy(update={"workers": workers}), "plain", Ranks(), device)


def run(bench: Bench, trials: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds until the last trial's end without starts and evaluations, and all losses."""
    rate = bench.config.training.learning_rate
    objectives = [PAPER_BASELINES[i % len(PAPER_BASELINES)] for i in range(trials)]
    jobs = [
        Job(f"{i}", TrialConfig(objective=objective, learning_rate=rate * (i + 1), seed=0), folder / f"{i}")
        for i, objective in enumerate(objectives)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(bench.config.workers.lanes) as threads:
        results = list(threads.map(bench.run, jobs))
    taken = time.perf_counter() - started
    beside = sum(r.metrics["time/seconds"] * (r.metrics["time/start"] + r.metrics["time/evaluation"]) for r in results)
    lines = [json.loads(line) for job in jobs for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    return taken - beside, [line["train/loss"] for line in lines]


if __name__ == "__main__":
    main()
