"""Has the workers of a sweep brought by the cluster's autoscaler, and becomes the command that needs them.

    python cluster/gather.py --workers 4 --each GPU=1 --each CPU=1 --minutes 30 -- python -m raysft sweep FILE

A sweep counts, when it begins, how many groups the cluster's nodes can hold; a cluster that has scaled down to its head
holds none. What is asked for here is given up again before the command starts, and nothing keeps nodes that idle.
"""

import argparse
import os
import sys
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group


def gather(workers: int, each: dict[str, float], seconds: float) -> int:
    """Ask for so many workers at once and wait. Returns how many of them there is room for now."""
    asked = [placement_group([each]) for _ in range(workers)]
    deadline = time.monotonic() + seconds
    came = sum(group.wait(max(0.0, deadline - time.monotonic())) for group in asked)
    for group in asked:
        remove_placement_group(group)
    return came


def _amount(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    return name, float(amount)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="of all groups together")
    parser.add_argument("--each", type=_amount, action="append", required=True, metavar="RESOURCE=AMOUNT")
    parser.add_argument("--minutes", type=float, default=30.0, help="then go on with those that came, if any did")
    parser.add_argument("command", nargs="*", help="what to run then; without it, that is all")
    options = parser.parse_args()
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    came = gather(options.workers, dict(options.each), 60 * options.minutes)
    ray.shutdown()
    print(f"There is room for {came} of {options.workers} workers with {dict(options.each)}.", flush=True)
    if came == 0:
        sys.exit(1)
    if options.command:
        os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
