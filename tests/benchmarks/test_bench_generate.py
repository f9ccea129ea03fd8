"""The benchmark of generation on a tiny model: that all write the same, and what is written; no time is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "bench_generate.py"


def bench(folder: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The script's output and JSON."""
    command = [sys.executable, str(SCRIPT), "--threads", "1", "--repeats", "2", "--json", str(folder / "bench.json")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    written = folder / "bench.json"
    return done, json.loads(written.read_text()) if written.exists() else {}


def test_all_write_and_greedy_completions_agree(tiny_backbone: Path, tmp_path: Path) -> None:
    rows = [{"question": "1+" * n, "answer": "2"} for n in range(1, 11)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--backbone", str(tiny_backbone), "--data", str(tmp_path / "data.jsonl"), "--template", "plain"]
    flags += ["--precision", "fp32", "--problems", "5", "--samples", "3", "--batch-size", "6", "--max-new-tokens", "20"]
    done, report = bench(tmp_path, *flags, "--variants", "plain", "stock", "raysft")
    assert done.returncode == 0, done.stderr
    assert report["batch"] == {"prompts": 5, "shortest": 2, "median": 10, "longest": 18}
    agreed, lengths = (json.loads(part) for part in report["greedy"].split(" first")[0].split(" of "))
    assert agreed == lengths
    variants = report["variants"]
    assert list(variants) == ["plain", "stock", "raysft"]
    for found in variants.values():
        assert [run["completions"] for run in found["runs"]] == [15, 15]
        assert found["speeds"] == pytest.approx([run["tokens"] / run["seconds"] for run in found["runs"]])
        assert found["vs_plain"] == pytest.approx(found["tokens_per_second"] / variants["plain"]["tokens_per_second"])
        assert all(15 < run["tokens"] < 15 * 20 for run in found["runs"])
    assert [run["tokens"] for run in variants["raysft"]["runs"]] == [run["tokens"] for run in variants["stock"]["runs"]]


def test_a_backbone_needs_data(tiny_backbone: Path, tmp_path: Path) -> None:
    done, _ = bench(tmp_path, "--backbone", str(tiny_backbone))
    assert done.returncode == 2
    assert "--data" in done.stderr
