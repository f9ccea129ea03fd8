"""What the benchmarks share: the machine's facts, memory of a process, and how a report is told and kept."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def machine(threads: int, device: str, packages: Sequence[str] = ()) -> dict[str, str]:
    """Facts without which a time means nothing; packages: those whose versions count, besides torch and raysft."""
    try:
        lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout
    except OSError:
        lscpu = ""
    model = re.search(r"Model name:\s*(.+)", lscpu)
    facts = {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "load at the start": f"{os.getloadavg()[0]:.1f}",  # the times of a machine with other work are worth little
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "python": platform.python_version(),
    }
    for package in ("torch", "raysft", *packages):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def told(text: str) -> str:
    return textwrap.fill(text, 118)


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process in memory: now (VmRSS) or at most since `reset_peak` (VmHWM). Linux only."""
    found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
