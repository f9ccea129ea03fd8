"""Time that a sweep spends beside training: the demo's trials in warm groups and in a fresh group for each.

Both ways run in turn, each as a process of `raysft sweep`. --growth runs more trials and more workers instead and says
how the overhead grows; --memory runs short trials in one worker and says how its memory grows.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import sweep_memory
from sweep_runs import run
from telling import machine, number, table, told, write

from raysft.demo import make_demo
from raysft.sweepfile import load

WAYS = {"warm": "true", "cold": "false"}  # workers.reuse
GROUPS = "1x1 2x1 1x2"
TINY = ["evaluation.generation.problems=10", "evaluation.generation.samples=1", "training.steps=5"]


def main() -> None:
    args = _arguments()
    facts = machine(threads=1, device="cpu", packages=("ray", "deepspeed"))
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())), flush=True)
    report: dict[str, Any] = {"machine": facts, "settings": {k: str(v) for k, v in vars(args).items()}}
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as temporary:
        folder = Path(temporary)
        file = args.file or make_demo(folder / "materials", seed=0, log=lambda text: print(told(text), flush=True))
        sets = chosen(file, args)
        if args.memory:
            report["memory"] = memory(file, sets, folder, args)
        elif args.growth:
            report["growth"] = growth(file, sets, folder, args)
        else:
            report["ways"] = ways(file, sets, folder, args)
    write(args.json, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--file", type=Path, help="sweep file; without it, the demo's, whose backbones are made")
    parser.add_argument("--backbones", nargs="+", help="of the file; without it, all", metavar="NAME")
    parser.add_argument("--trials", type=int, help="searched trials of a backbone, beside the four baselines")
    parser.add_argument("--steps", type=int, help="of a trial")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="as in raysft sweep; may be repeated")
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)), help="trials at once")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="in any number")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; every other one in the other order")
    parser.add_argument("--growth", action="store_true", help="tiny trials, 1 and 4 times as many, in --groups")
    parser.add_argument("--groups", nargs="+", default=GROUPS.split(), help="for --growth: trials at once x workers")
    parser.add_argument("--memory", type=int, metavar="TRIALS", help="resident memory of one worker")
    parser.add_argument("--every", type=int, default=10, help="for --memory: trials between two looks")
    parser.add_argument("--trim", action="store_true", help="for --memory: without what the C library keeps of freed")
    parser.add_argument("--stage", nargs="+", type=int, default=[0, 1, 2, 3], help="for --memory: of ZeRO")
    parser.add_argument("--json", type=Path, default=Path("build/bench-sweep.json"), help="where everything is written")
    args = parser.parse_args()
    if args.repeats < 1 or args.slots < 1:
        parser.error("--repeats and --slots must be at least 1")
    return args


def chosen(file: Path, args: argparse.Namespace) -> list[str]:
    """What the flags change in the sweep file."""
    sets = []
    if args.backbones:
        known = {b.name: b.model_dump(mode="json") for b in load(file).backbones}
        sets.append(f"backbones={json.dumps([known[name] for name in args.backbones])}")
    if args.trials is not None:
        sets.append(f"search.trials={args.trials}")
    if args.steps is not None:
        sets.append(f"training.steps={args.steps}")
    return sets + args.sets


def ways(file: Path, sets: list[str], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Warm and cold runs in turn."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for turn in range(args.repeats):
        for way in args.ways if turn % 2 == 0 else reversed(args.ways):
            output = folder / f"{way}-{turn}"
            runs[way].append(run(file, output, [*sets, f"workers.reuse={WAYS[way]}"], args.slots).facts())
            print(told(f"{way}, round {turn + 1}: {runs[way][-1]['wall']:.0f} s"), flush=True)
    medians = {way: middle(found) for way, found in runs.items()}
    print("\n" + told_runs(medians))
    ratio = medians["cold"]["wall"] / medians["warm"]["wall"] if len(medians) == 2 else None
    print(f"\ncold / warm, wall: {number(ratio, '.2f')}")
    return {"runs": runs, "median": medians, "cold_to_warm": ratio}


def growth(file: Path, sets: list[str], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Warm runs of tiny trials: the file's number of them and four times as many, in groups of several kinds."""
    config = load(file, sets)
    fewest = len(config.for_backbone(config.backbones[0].name).all_baselines()) + config.search.trials
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(args.repeats):
        for groups in args.groups:
            slots, workers = map(int, groups.split("x"))
            for times in (1, 4):
                searched = times * fewest - fewest + config.search.trials
                own = [
                    f"workers.count={workers}",
                    f"workers.resources={{CPU: {min(1.0, args.slots / (slots * workers))}}}",
                ]
                name = f"{times * fewest} trials, {slots} at once, workers {workers}"
                output = folder / f"{groups}-{times}-{turn}"
                tiny = [*TINY, *sets, *own, f"search.trials={searched}"]
                runs.setdefault(name, []).append(run(file, output, tiny, slots).facts())
                print(told(f"{name}: {runs[name][-1]['wall']:.0f} s"), flush=True)
    medians = {name: middle(found) for name, found in runs.items()}
    print("\n" + told_runs(medians))
    pairs = list(medians.items())
    ratios = {}
    for (few, base), (many, more) in zip(pairs[::2], pairs[1::2], strict=True):
        ratios[f"{many} / {few}"] = {key: more[key] / base[key] for key in ("wall", "until_first_trial", "gap")}
    rows = [[name, *(number(value, ".2f") for value in ratio.values())] for name, ratio in ratios.items()]
    print("\n" + table(["four times the trials", "wall", "until first", "gap"], rows))
    return {"runs": runs, "median": medians, "ratios": ratios}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number."""
    keys = [key for key in runs[0] if key != "gaps"]
    return {key: median(run[key] for run in runs) if runs[0][key] is not None else None for key in keys}


def told_runs(runs: dict[str, dict[str, Any]]) -> str:
    """Seconds of each run; gap: in a slot, from a trial's end to the next one's first step."""
    head = ["", "wall s", "until first trial", "steps", "evaluation", "efficiency", "once up", "gap", "first", "last"]
    rows = []
    for name, r in runs.items():
        seconds = [number(r[key], ".1f") for key in ("wall", "until_first_trial", "steps", "evaluation")]
        shares = [number(r[key], ".0%") for key in ("efficiency", "efficiency_up")]
        gaps = [number(r[key], ".2f") for key in ("gap", "gap_first", "gap_last")]
        rows.append([name, *seconds, *shares, *gaps])
    about = (
        "efficiency: (steps + evaluation) / (wall x trials at once); once up: the same from each backbone's first "
        "step to its last trial's end; gap: in one slot, from a trial's end to the next one's first step, median of "
        "all, of the first quarter, of the last quarter"
    )
    return f"{table(head, rows)}\n\n{told(about)}"


def memory(file: Path, sets: list[str], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Of each ZeRO stage, in one worker on the first backbone."""
    found: dict[str, Any] = {}
    for stage in args.stage:
        tiny = [*TINY, *sets, f"zero.stage={stage}", "export=none", f"output={json.dumps(str(folder / 'runs'))}"]
        config = load(file, tiny)
        study = config.for_backbone(config.backbones[0].name)
        points = sweep_memory.measure(study, args.memory, args.every, args.trim, folder / f"memory-{stage}")
        slope = sweep_memory.slope(points)
        found[f"stage {stage}"] = {"points": points, "mib_a_trial": slope}
        shown = "  ".join(f"{done}: {mib:.0f}" for done, mib in points)
        print(told(f"ZeRO {stage}, MiB after so many trials: {shown}; {number(slope, '.2f')} MiB a trial"), flush=True)
    return found


if __name__ == "__main__":
    main()
