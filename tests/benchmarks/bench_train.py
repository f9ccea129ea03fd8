"""Time of training steps: raysft beside the way of the paper's trainer, and TRL's SFTTrainer with and without packing.

All step the same weights on the same samples at the same precision, each in a process of its own, in turn, in an order
that rotates from round to round. The losses of the first two steps must agree: then all train the same thing. The first
step of each is not timed.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from telling import MIB, machine, number, table, told, write
from train_inputs import Shape, make_config
from train_variants import LOSS_TYPES, VARIANTS, Ready, Setup, Step, live

from raysft.backbone import load_tokenizer
from raysft.config import SweepConfig
from raysft.data.tokenized import TokenizedData, split

TRL = ("trl", "trl-packed")  # a family of two ways to the loss each, of which the faster is taken
NAMES = ("paper", "paper-longest", *TRL, "raysft")
PEERS = ("paper", "trl-packed")
TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2}  # relative, of the losses of the first two steps
CHECKED = 2


@dataclass
class Runner:
    """A variant's process as its master sees it."""

    name: str
    process: multiprocessing.process.BaseProcess
    connection: Connection
    log: Path
    notes: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)
    error: str = ""
    ended: bool = False

    def step(self) -> float:
        """Seconds of one step; 0 where the process broke."""
        if self.error:
            return 0.0
        try:
            self.connection.send(True)
            self.steps.append(self.connection.recv())
        except (EOFError, OSError):
            self._broke()
            return 0.0
        return self.steps[-1].seconds

    def end(self) -> None:
        self.ended = True
        with contextlib.suppress(OSError):  # it is gone already
            self.connection.send(False)
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def wait_ready(self) -> None:
        try:
            ready: Ready = self.connection.recv()
            self.notes = ready.notes
        except (EOFError, OSError):
            self._broke()

    def _broke(self) -> None:
        self.process.join()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        self.error = lines[-1] if lines else f"ended with exit code {self.process.exitcode}"


def main() -> None:
    args = _arguments()
    facts = machine(args.threads, "cuda" if torch.cuda.is_available() else "cpu", ("transformers", "trl"))
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())))
    with tempfile.TemporaryDirectory(prefix="bench-train-") as temporary:
        folder = Path(temporary)
        config = configured(args, folder)
        data = split(config.data, load_tokenizer(config.backbone), config.output / "cache")[0]
        batch = facts_of(data, args)
        print(told("; ".join(f"{key} {value}" for key, value in batch.items())), flush=True)
        setup = Setup(
            config, folder, args.exponent, args.micro_batch, args.max_length, args.packed_length, args.threads
        )
        runners = start(args, setup)
        try:
            measure(runners, args)
        finally:
            for runner in runners:
                runner.end()
    report = {"machine": facts, "settings": settings(args), "batch": batch, **summary(runners, batch, args)}
    write(args.json, report)
    print(tell(report))
    if report["disagreement"]:
        sys.exit(report["disagreement"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", help="folder or hub id; without it, random weights of --shape")
    parser.add_argument("--data", type=Path, help="JSONL, with --backbone; without it, synthetic samples")
    parser.add_argument("--prompt", default="prompt", help="field of --data")
    parser.add_argument("--response", default="response", help="field of --data")
    parser.add_argument("--template", default="chat", help="of --data: chat, qwen, llama3, deepseek or plain")
    shape = ",".join(map(str, Shape()))
    parser.add_argument("--shape", default=shape, help=f"of random weights: {', '.join(Shape._fields)}")
    parser.add_argument("--samples", type=int, default=16, help="a step; their lengths are spread as the data's")
    parser.add_argument("--steps", type=int, default=1, help="of each variant in each round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of weights and products")
    parser.add_argument("--exponent", type=float, default=0.0, help="of raysft's objective; the others take 0")
    parser.add_argument("--max-length", type=int, default=800, help="tokens that `paper` pads every sample to")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples a forward pass, where they are padded")
    parser.add_argument("--packed-length", type=int, default=2048, help="tokens of a packed row of TRL")
    parser.add_argument("--trl-loss", choices=["faster", *LOSS_TYPES], default="faster", help="TRL's way to the loss")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="constant")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES), help="in any number", metavar="V")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each")
    parser.add_argument("--json", type=Path, default=Path("build/bench-train.json"), help="where every time is written")
    args = parser.parse_args()
    if (args.backbone is None) != (args.data is None):
        parser.error("--backbone and --data come together: synthetic samples are for random weights")
    if min(args.samples, args.steps, args.repeats) < 1:
        parser.error("--samples, --steps and --repeats must be at least 1")
    if args.packed_length < args.max_length:
        parser.error("--packed-length below --max-length would cut samples")
    return args


def configured(args: argparse.Namespace, folder: Path) -> SweepConfig:
    training = {
        "micro_batch_tokens": args.packed_length,
        "precision": args.precision,
        "learning_rate": args.learning_rate,
        "schedule": "constant",
        "warmup_ratio": 0,
    }
    data = None
    if args.data:
        source = {"kind": "file", "path": str(args.data.absolute())}
        data = {"train": source, "prompt": args.prompt, "response": args.response, "template": args.template}
    shape = Shape(*map(int, args.shape.split(",")))
    config = make_config(folder, args.samples, args.max_length, training, shape, args.backbone, data)
    return config.for_backbone(config.backbones[0].name)


def facts_of(data: TokenizedData, args: argparse.Namespace) -> dict[str, Any]:
    tokens = int(data.lengths.sum())
    return {
        "samples": len(data),
        "tokens": tokens,
        "shortest": int(data.lengths.min()),
        "mean": round(tokens / len(data), 1),
        "longest": int(data.lengths.max()),
        "supervised": round(float(data.supervised.sum()) / tokens, 3),
        "data": str(args.data or "synthetic"),
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def start(args: argparse.Namespace, setup: Setup) -> list[Runner]:
    """The processes after their first steps, begun one by one: what loads at once is slow, and short of memory."""
    context = multiprocessing.get_context("spawn")
    runners: list[Runner] = []
    for name in VARIANTS:
        family, _, loss_type = name.partition(" ")
        if family not in args.variants or (loss_type and args.trl_loss not in ("faster", loss_type)):
            continue
        ours, theirs = context.Pipe()
        folder = setup.folder / name.replace(" ", "-")
        log = folder.with_suffix(".log")
        process = context.Process(target=live, args=(name, replace(setup, folder=folder), theirs, log), daemon=True)
        process.start()
        theirs.close()
        runners.append(Runner(name, process, ours, log))
        runners[-1].wait_ready()
        print(f"{name}: first step, not timed, {runners[-1].step():.3g} s", flush=True)
        end_slower([r for r in runners if r.name.startswith(f"{family} ")])
    return runners


def end_slower(ways: list[Runner]) -> None:
    """Of TRL's two ways to the loss, where both work, only the one whose second step is faster goes on."""
    if len(ways) == 2 and not any(way.error for way in ways):
        max(ways, key=Runner.step).end()


def measure(runners: list[Runner], args: argparse.Namespace) -> None:
    """The rounds. A process that was killed while it waited, for its memory, is found by its first step."""
    left = [runner for runner in runners if not runner.ended and not runner.error]
    for turn in range(args.repeats):
        at = turn % max(1, len(left))
        for runner in left[at:] + left[:at]:
            runner.timed += [runner.step() for _ in range(args.steps)]


def summary(runners: list[Runner], batch: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """left_out: reasons; variants: medians and ratios; losses: proof that all train the same."""
    found: dict[str, dict[str, Any]] = {}
    for runner in runners:
        if runner.error or not runner.timed:
            continue
        seconds, last = median(runner.timed), runner.steps[-1]
        found[runner.name] = {
            "seconds": runner.timed,
            "median": seconds,
            "samples_per_second": batch["samples"] / seconds,
            "tokens_per_second": batch["tokens"] / seconds,
            "padding_share": 1 - batch["tokens"] / last.processed,
            "peak_mib": last.peak / MIB,
            "notes": runner.notes,
        }
    for name in found:
        for peer in PEERS:
            other = next((v["median"] for n, v in found.items() if n.split()[0] == peer), None)
            found[name][f"vs_{peer}"] = other and other / found[name]["median"]
    losses = {r.name: [step.loss for step in r.steps[:CHECKED]] for r in runners if r.steps}
    alike = {name: values for name, values in losses.items() if name != "raysft" or args.exponent == 0}
    return {
        "variants": found,
        "left_out": {r.name: r.error for r in runners if r.error},
        "slower_loss": {r.name: [asdict(s) for s in r.steps] for r in runners if not r.timed and not r.error},
        "losses": losses,
        "disagreement": disagreement(alike, TOLERANCE[args.precision]),
    }


def disagreement(losses: dict[str, list[float]], tolerance: float) -> str:
    """What is wrong with the losses of the first steps; empty where they agree within the relative tolerance."""
    for step, values in enumerate(zip(*losses.values(), strict=False), start=1):
        middle = median(values)
        for name, value in zip(losses, values, strict=True):
            if not abs(value / middle - 1) <= tolerance:  # a NaN is wrong as well
                return f"{name} does not train what the others do: loss {value:.4f} at step {step}, median {middle:.4f}"
    return ""


def tell(report: dict[str, Any]) -> str:
    lines = [told(f"{name} is left out: {reason}") for name, reason in report["left_out"].items()]
    for name, steps in report["slower_loss"].items():
        lines.append(
            told(f"{name} is slower than the other loss_type: its second step took {steps[1]['seconds']:.3g} s")
        )
    for name, variant in report["variants"].items():
        notes = {key: value for key, value in variant["notes"].items() if key != "warnings"}
        lines.append(told(f"{name}: {', '.join(f'{key} {value}' for key, value in notes.items())}"))
        lines += [told(f"{name} warns: {text}") for text in variant["notes"].get("warnings", [])]
    lines.append("\nMean loss of the first steps (all on the same samples; the second shows that the update agrees)\n")
    rows = [[name, *(f"{loss:.4f}" for loss in values)] for name, values in report["losses"].items()]
    lines.append(table(["variant", *(f"step {i + 1}" for i in range(CHECKED))], rows))
    lines.append("\nMedians; x: how many times as long the other takes; padding: share of the processed tokens\n")
    rows = []
    for name, v in report["variants"].items():
        speeds = [f"{v['median']:.3g}", f"{min(v['seconds']):.3g} - {max(v['seconds']):.3g}"]
        speeds += [f"{v['samples_per_second']:.3g}", f"{v['tokens_per_second']:.4g}"]
        ratios = [number(v[f"vs_{peer}"], ".2f") for peer in PEERS]
        rows.append([name, *speeds, *ratios, f"{v['padding_share']:.0%}", f"{v['peak_mib']:.0f}"])
    head = ["variant", "s/step", "min - max", "samples/s", "tokens/s", *(f"x {peer}" for peer in PEERS)]
    return "\n".join([*lines, table([*head, "padding", "peak MiB"], rows)])


if __name__ == "__main__":
    main()
