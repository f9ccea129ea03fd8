"""Regret of an advice: points of accuracy lost against the best of all objectives tried, over tasks and backbones.

`collect` trains every objective of the grid in each case, in plain processes of one thread, and appends a line a case
to a file, which may be continued. `follow` trains the auto objective with `follow` in each case, advised by the other
tasks. `table` tells what each policy would have lost: no case is advised by its own task.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import regret_cases
import regret_table
import torch
from regret_cases import Case
from telling import machine, told

from raysft.capability import resolve_threshold
from raysft.config import Job, TrialConfig
from raysft.inprocess import bench_here
from raysft.objectives import Power
from raysft.objectives.base import Selection

GRID = (*(Power(exponent=a) for a in (0, 0.1, 0.25, 0.5, 1, 2, 10)), Power(exponent=0, threshold=0.2))


def main() -> None:
    args = _arguments()
    facts = machine(threads=1, device="cpu", packages=("reasoning-gym",))
    print(told("; ".join(f"{key} {value}" for key, value in facts.items())), flush=True)
    if args.what == "table":
        print(regret_table.report(regret_table.read(args.results)))
        return
    known = regret_table.read(args.results)
    wanted = regret_cases.cases(args.tasks, args.seeds)
    if args.what == "collect":
        _run([case for case in wanted if case not in known], lambda case: GRID, "trials", args)
    else:
        advised = partial(regret_table.following, known=known)
        _run([case for case in wanted if case in known and not known[case].follow], advised, "follow", args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("what", choices=["collect", "follow", "table"])
    parser.add_argument("--results", type=Path, default=Path("build/regret.jsonl"), help="one line a case; appended to")
    parser.add_argument("--folder", type=Path, default=Path("build/regret"), help="for backbones and data")
    parser.add_argument("--tasks", nargs="+", choices=regret_cases.NAMES, default=regret_cases.NAMES, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=250, help="of a trial; twice as many on a weak backbone")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="as in raysft sweep; may be repeated")
    parser.add_argument("--processes", type=int, default=2, help="cases at once")
    parser.add_argument("--minutes", type=float, default=60, help="after which no further case begins")
    return parser.parse_args()


def _run(wanted: list[Case], objectives: Callable[[Case], Any], what: str, args: argparse.Namespace) -> None:
    """Train the objectives of each case, and append what came out as `what`."""
    args.results.parent.mkdir(parents=True, exist_ok=True)
    latest = time.time() + 60 * args.minutes
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measured, case, tuple(objectives(case)), args, latest) for case in wanted]
        for job in as_completed(jobs):
            if job.exception():
                pool.shutdown(cancel_futures=True)
            if (found := job.result()) is None:
                continue
            trials = found.pop("trials")
            with args.results.open("a") as file:
                file.write(json.dumps(found | {what: trials}) + "\n")
            scores = "  ".join(f"{label} {trial['accuracy']:.3f}" for label, trial in trials.items())
            p = found["capability"]["mean_probability"]
            print(told(f"{Case(**found['case']).name()}: p {p:.3f}  {scores}"), flush=True)


def measured(case: Case, objectives: tuple[Selection, ...], args: argparse.Namespace, latest: float) -> Any:
    """Capability, and of each objective its accuracy, standard error and seconds; None where the time is over."""
    if time.time() > latest:
        return None
    torch.set_num_threads(1)
    config = regret_cases.config_of(case, args.folder, args.steps, args.sets)
    started = time.perf_counter()
    bench = bench_here(config)
    capability = bench.probe()
    probed = time.perf_counter() - started
    trials = {}
    for objective in objectives:
        trial = TrialConfig(objective=objective, learning_rate=config.training.learning_rate, seed=case.seed)
        folder = config.folder / case.level / objective.slug()
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        metrics = bench.run(Job(folder.name, resolve_threshold(trial, capability), folder)).metrics
        shutil.rmtree(folder)
        trials[objective.label()] = {
            "objective": objective.model_dump(mode="json"),
            "accuracy": metrics["eval/accuracy"],
            "se": metrics["eval/accuracy_se"],
            "seconds": time.perf_counter() - started,
        }
    return {"case": asdict(case), "capability": capability.to_dict(), "probe_seconds": probed, "trials": trials}


if __name__ == "__main__":
    main()
