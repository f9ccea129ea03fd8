"""Time and memory of the loss head beside full logits, other chunked heads, and the three matrix products alone.

All variants run in turn, in an order that rotates from round to round, so that whatever else the machine does meets
each of them alike. Memory is measured in a process per variant, because freed memory does not show in another's peak.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from head_variants import HALF, VARIANTS, Bound, Case, Shape, Variant, make_case, naive, timed
from telling import MIB, machine, number, reset_peak, resident, told, write

from raysft.objectives.base import IGNORE_INDEX
from raysft.objectives.head import linear_objective
from raysft.objectives.power import Power

SHAPES = "4096,576,49152 2048,2048,49152 2048,576,151936 1024,2048,151936"
OBJECTIVES = "0 1 10 p>=.2 p>=.9 p<=.1 p>=.99"
MEMORY_ROWS = "1024 2048 4096 8192"
BOUNDS = ("bound fp32", "bound bf16")
# Relative, of the loss and of the weight's gradient, by whether products are in bf16. In fp32 log_softmax, which others
# use, loses most digits of 1 - p near p = 1.
TOLERANCE = {False: (1e-4, 3e-4), True: (2e-2, 3e-2)}
PEERS = {"naive": ("naive fp32",) * 2, "autocast": ("naive bf16 autocast",) * 2}
PEERS |= {"trl": ("trl chunked fp32", "trl chunked bf16"), "bound": BOUNDS}  # of a variant in fp32, in bf16


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    if args.memory:
        print(json.dumps(measure_memory(args.memory, args.shapes[0], args.objectives[0], args.device)))
        return
    variants, left_out = available(args.variants, args.device)
    torch.set_num_threads(args.threads)  # again, as what was imported may have changed it
    facts = machine(args.threads, args.device, ("trl", "liger-kernel"))
    report: dict[str, Any] = {"machine": facts, "repeats": args.repeats, "left_out": left_out}
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())))
    for name, reason in left_out.items():
        print(told(f"{name} is left out: {reason}"))
    report["sanity"] = check(variants, args.objectives, args.device)
    report["shapes"] = []
    for shape in args.shapes:
        result = {"shape": shape._asdict()} | time_shape(variants, args, shape)
        result["memory"] = {v.name: memory_of(v.name, shape, args) for v in variants}
        report["shapes"].append(result)
        print(tables(result), flush=True)
        write(args.json, report)  # after each shape: a run of an hour must not be lost to its last minute
    flat = [v.name for v in variants if v.name in ("raysft fp32", "raysft bf16")]
    report["memory_by_rows"] = [
        {"rows": rows, "variant": name} | memory_of(name, args.shapes[0]._replace(rows=rows), args)
        for name in flat
        for rows in args.memory_rows
    ]
    layer = f"hidden {args.shapes[0].hidden}, vocabulary {args.shapes[0].vocabulary}"
    print(memory_table(f"Peak memory beyond the inputs by rows, {layer}, MiB", report["memory_by_rows"]))
    write(args.json, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(flag: str, default: str, parse: Callable[[str], Any], about: str) -> None:
        help_ = f"{about} (default: {default})".replace("%", "%%")
        parser.add_argument(flag, nargs="+", type=parse, default=[parse(d) for d in default.split()], help=help_)

    several("--shapes", SHAPES, lambda text: Shape(*map(int, text.split(","))), "rows,hidden,vocabulary each")
    several("--objectives", OBJECTIVES, parse_objective, "exponents, and thresholds on -p")
    several("--memory-rows", MEMORY_ROWS, int, "rows at which to show that memory does not grow")
    parser.add_argument("--variants", nargs="+", default=[v.name for v in VARIANTS] + list(BOUNDS), help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, default=Path("build/bench-head.json"), help="where every time is written")
    parser.add_argument("--memory", metavar="VARIANT", help="only its memory, for the first shape and objective")
    args = parser.parse_args()
    unknown = set(args.variants) - {v.name for v in VARIANTS} - set(BOUNDS)
    if unknown or args.repeats < 1:
        parser.error(f"unknown variants: {', '.join(sorted(unknown))}" if unknown else "--repeats must be at least 1")
    return args


def parse_objective(text: str) -> Power:
    """`10` is an exponent; `p>=.2` is -p of the tokens with such p."""
    threshold = re.fullmatch(r"p([<>])=(.+)", text)
    if threshold is None:
        return Power(exponent=float(text))
    keep = "above" if threshold[1] == ">" else "below"
    return Power(exponent=1, threshold=float(threshold[2]), keep=keep)


def _spelled(objective: Power) -> str:
    """What `parse_objective` reads."""
    if objective.threshold is None:
        return f"{objective.exponent:g}"
    return f"p{'>' if objective.keep == 'above' else '<'}={objective.threshold:g}"


def available(names: Sequence[str], device: str) -> tuple[list[Variant], dict[str, str]]:
    """The wanted variants that can run here, and why others cannot."""
    variants, left_out = [], {}
    for variant in VARIANTS:
        if variant.name not in names:
            continue
        if variant.cuda_only and device != "cuda":
            left_out[variant.name] = "needs CUDA"
            continue
        try:
            importlib.import_module(variant.module or "torch")
        except (ImportError, RuntimeError) as error:  # transformers raises RuntimeError for what it imports lazily
            left_out[variant.name] = f"{variant.module} cannot be imported ({error})"
            continue
        variants.append(variant)
    return variants, left_out


def check(variants: list[Variant], objectives: list[Power], device: str) -> list[dict[str, Any]]:
    """Loss and gradient of the weight against full logits in float64, on a small shape; exits where one is off."""
    base, found = make_case(Shape(384, 64, 512), device), []
    for variant in variants:
        case = base.to(variant.dtype)
        for objective in filter(variant.does, objectives):
            exact = case.to(torch.float64)  # of the rounded inputs: what counts is what the variant does with them
            truth = naive(exact, objective)
            truth.backward()
            case.clear()
            loss = variant.step(case, objective)
            error = abs(loss.item() / truth.item() - 1)
            off = ((case.weight.grad.double() - exact.weight.grad).norm() / exact.weight.grad.norm()).item()
            found.append({"variant": variant.name, "objective": objective.label(), "loss": error, "gradient": off})
            allowed, allowed_off = TOLERANCE[variant.half]
            if not (error <= allowed and off <= allowed_off):  # a NaN is wrong as well
                sys.exit(f"{variant.name}, {objective.label()}: loss off by {error:.1e}, gradient by {off:.1e}")
    return found


def time_shape(variants: list[Variant], args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    case = make_case(shape, args.device)
    cases = {torch.float32: case, HALF: case.to(HALF)}
    bounds = [
        Bound(name, of.supervised(), of.weight.detach())
        for name, of in zip(BOUNDS, cases.values(), strict=True)
        if name in args.variants
    ]
    with torch.no_grad():
        logp = linear_objective(case.hidden, case.weight, case.labels, Power())[3][case.labels != IGNORE_INDEX]
    objectives = []
    for objective in args.objectives:
        chosen = [v for v in variants if v.does(objective)]
        live = objective.weight(logp) != 0
        times = time_rounds(chosen, bounds, cases, live, objective, args)
        objectives.append(
            {
                "objective": objective.label(),
                "live": int(live.sum()),
                "kept_share": objective.keeps(logp).double().mean().item(),
                "variants": compare(times),
            }
        )
    p = logp.exp()
    shares = {"p>=.9": p >= 0.9, ".1<p<.9": (p > 0.1) & (p < 0.9), "p<=.1": p <= 0.1}
    return {
        "supervised": logp.numel(),
        "shares": {name: share.double().mean().item() for name, share in shares.items()},
        "bound_calls": {
            b.name: {p: f"{call}, tiles of {tile}" for p, (call, tile) in b.choice.items()} for b in bounds
        },
        "objectives": objectives,
    }


def time_rounds(
    variants: list[Variant],
    bounds: list[Bound],
    cases: dict[torch.dtype, Case],
    live: torch.Tensor,
    objective: Power,
    args: argparse.Namespace,
) -> dict[str, list[float]]:
    """Seconds of forward + backward, all variants once a round."""
    calls: dict[str, Callable[[], Any]] = {}
    for variant in variants:
        calls[variant.name] = partial(variant.step, cases[variant.dtype], objective)
    for bound in bounds:
        calls[bound.name] = partial(bound.step, bound.rows[live])
    vocabulary = len(cases[HALF].weight)
    once = {v.name for v in variants if vocabulary >= v.once_from}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in once and times[name]:
                continue
            for case in cases.values():  # freeing the gradients of the one before is no part of this one's time
                case.clear()
            times[name].append(timed(calls[name], args.device))
    return times


def compare(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Beside each variant's times their median, and how many times as long its peers take; of the bound: the share."""
    medians = {name: median(values) for name, values in times.items()}
    result: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        result[name] = {"times": values, "median": medians[name]}
        for peer, by_half in PEERS.items():
            other = medians.get(by_half["bf16" in name])
            result[name]["share_of_bound" if peer == "bound" else f"vs_{peer}"] = other and other / medians[name]
    return result


def measure_memory(name: str, shape: Shape, objective: Power, device: str) -> dict[str, int]:
    """Peak bytes of one forward + backward beyond its inputs, and without the gradients that it has to return."""
    (variant,) = (v for v in VARIANTS if v.name == name)
    variant.step(make_case(Shape(64, 64, 512), device).to(variant.dtype), objective)  # loads code, starts threads
    case = make_case(shape, device).to(variant.dtype)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        variant.step(case, objective)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory of the inputs' making could be used without showing
        reset_peak()
        before = resident("VmRSS")
        variant.step(case, objective)
        peak = resident("VmHWM") - before
    weight, hidden = (t.numel() * t.element_size() for t in (case.weight, case.hidden))
    return {"peak": peak, "without_grad_weight": peak - weight, "without_gradients": peak - weight - hidden}


def memory_of(name: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """`measure_memory` in a process of its own, for the first objective that the variant does.

    tight: the same where the C library gives freed tensors back to the system at once, so that neither what it keeps
    for itself nor gaps between tensors count; those differ from run to run by some MiB.
    """
    (variant,) = (v for v in VARIANTS if v.name == name)
    objective = next(filter(variant.does, args.objectives), Power())
    command = [sys.executable, __file__, "--memory", name, "--shapes", ",".join(map(str, shape))]
    command += ["--objectives", _spelled(objective), "--threads", str(args.threads), "--device", args.device]
    found = _json_of(command, {})
    if args.device != "cuda":
        found["tight"] = _json_of(command, {"MALLOC_MMAP_THRESHOLD_": "131072"})
    return found


def _json_of(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        return {"error": f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def tables(result: dict[str, Any]) -> str:
    """Of one shape: times, then memory."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["shares"].items())
    lines = [
        f"\n## {', '.join(f'{key} {value}' for key, value in result['shape'].items())}\n",
        f"{result['supervised']} rows are supervised; of them {shares}.",
        *(told(f"{b}: {'; '.join(map(' by '.join, c.items()))}.") for b, c in result["bound_calls"].items()),
        "\nSeconds of forward + backward; x: how many times as long the other takes; share: bound / time.\n",
        "| objective (kept) | variant | median | min - max | x naive | x autocast | x trl | share |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in result["objectives"]:
        label = f"{entry['objective']} ({entry['kept_share']:.0%})"
        for name, v in entry["variants"].items():
            ratios = [number(v[key], ".2f") for key in ("vs_naive", "vs_autocast", "vs_trl")]
            spread = f"{min(v['times']):.3g} - {max(v['times']):.3g}"
            cells = [label, name, f"{v['median']:.3g}", spread, *ratios, number(v["share_of_bound"], ".0%")]
            lines.append(f"| {' | '.join(cells)} |")
    memories = [{"variant": name} | memory for name, memory in result["memory"].items()]
    return "\n".join([*lines, memory_table("Peak memory beyond the inputs, MiB", memories)])


def memory_table(title: str, memories: list[dict[str, Any]]) -> str:
    columns = ["peak", "less gradient of weight", "less both gradients", "less both, tight"]
    lines = [f"\n{title}\n", f"| rows and variant | {' | '.join(columns)} |", "|---|---:|---:|---:|---:|"]
    for memory in memories:
        name = f"{memory['rows']}, {memory['variant']}" if "rows" in memory else memory["variant"]
        found = [memory.get(key) for key in ("peak", "without_grad_weight", "without_gradients")]
        found.append(memory.get("tight", {}).get("without_gradients"))
        cells = [number(value and value / MIB, ".1f") for value in found]
        lines.append(f"| {name} | {' | '.join(cells)} |" + (f" {memory['error'][:60]}" if "error" in memory else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
