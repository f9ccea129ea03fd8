"""The benchmark of trials side by side on a tiny model: what is written and that the trials are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "bench_lanes.py"


def test_both_ways_train_the_same(tmp_path: Path, tiny_backbone: Path) -> None:
    rows = [{"question": f"{a}+{b}?", "answer": f"{a + b}"} for a in range(10) for b in range(10)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--backbone", str(tiny_backbone), "--data", str(data)]
    command += ["--json", str(written), "--template", "plain", "--max-length", "32", "--samples", "2", "--lanes", "3"]
    command += ["--repeats", "2", "--precision", "fp32", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(written.read_text())["found"]
    assert found["differ"] < 1e-4
    assert len(found["seconds"]["side by side"]) == 2
    assert "| 2 samples |" in done.stdout
