"""The benchmark of training steps on a tiny model: that all train the same, and what is written; no time is judged."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent
TINY = ["--shape", "32,2,4,2,64,128", "--samples", "4", "--max-length", "400", "--micro-batch", "2", "--threads", "1"]


def bench(folder: Path, *flags: str, hidden: bool = False) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The script's output and JSON; hidden: trl cannot be imported, whether it is installed or not."""
    if hidden:
        (folder / "trl.py").write_text("raise ImportError('no trl here')\n")
    command = [sys.executable, str(FOLDER / "bench_train.py"), "--repeats", "2", "--json", str(folder / "bench.json")]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
    written = folder / "bench.json"
    return done, json.loads(written.read_text()) if written.exists() else {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A run in fp32 without TRL."""
    done, report = bench(tmp_path_factory.mktemp("bench"), *TINY, "--precision", "fp32", hidden=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, report


def test_what_breaks_is_left_out_and_said(run: tuple[str, dict[str, Any]]) -> None:
    output, report = run
    assert set(report["left_out"]) == {
        f"{way} {loss}" for way in ("trl", "trl-packed") for loss in ("chunked_nll", "nll")
    }
    assert all("no trl here" in reason for reason in report["left_out"].values())
    assert "no trl here" in output


def test_each_variant_has_times_and_ratios(run: tuple[str, dict[str, Any]]) -> None:
    batch, variants = run[1]["batch"], run[1]["variants"]
    assert list(variants) == ["paper", "paper-longest", "raysft"]
    for found in variants.values():
        assert len(found["seconds"]) == 2
        assert found["samples_per_second"] == pytest.approx(4 / found["median"])
        assert found["tokens_per_second"] == pytest.approx(batch["tokens"] / found["median"])
        assert found["vs_paper"] == pytest.approx(variants["paper"]["median"] / found["median"])
        assert found["vs_trl-packed"] is None
        assert found["peak_mib"] > 10


def test_padding_is_counted(run: tuple[str, dict[str, Any]]) -> None:
    batch, variants = run[1]["batch"], run[1]["variants"]
    assert variants["paper"]["padding_share"] == pytest.approx(1 - batch["tokens"] / (4 * 400))
    assert 0 <= variants["raysft"]["padding_share"] < variants["paper"]["padding_share"]
    assert 0 <= variants["paper-longest"]["padding_share"] <= variants["paper"]["padding_share"]


def test_all_train_the_same(run: tuple[str, dict[str, Any]]) -> None:
    losses = run[1]["losses"]
    assert run[1]["disagreement"] == ""
    for first, second in losses.values():
        assert first == pytest.approx(losses["paper"][0], rel=1e-5)
        assert second == pytest.approx(losses["paper"][1], rel=1e-5)
        assert second < first


@pytest.mark.slow
def test_trl_trains_the_same_packed_or_not(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    flags = ["--precision", "fp32", "--packed-length", "512", "--variants", "trl", "trl-packed", "raysft"]
    done, report = bench(tmp_path, *TINY, *flags, "--learning-rate", "1e-3")
    assert done.returncode == 0, done.stderr
    assert report["left_out"] == {}
    assert [name.split()[0] for name in report["variants"]] == ["trl", "trl-packed", "raysft"]
    assert len(report["slower_loss"]) == 2
    packed = next(v for name, v in report["variants"].items() if name.startswith("trl-packed"))
    assert packed["padding_share"] == 0
    assert any("cross-contamination" in text for text in packed["notes"]["warnings"])
    for values in report["losses"].values():  # packed samples do not see each other, whatever it warns of
        assert values == pytest.approx(report["losses"]["raysft"], rel=1e-4)


def test_real_data_are_taken_at_strides_of_their_length(tiny_backbone: Path, tmp_path: Path) -> None:
    rows = [{"question": "1" * n, "answer": "2" * n} for n in range(1, 31)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--backbone", str(tiny_backbone), "--data", str(tmp_path / "data.jsonl"), "--template", "plain"]
    flags += ["--prompt", "question", "--response", "answer", "--samples", "3", "--micro-batch", "3", "--threads", "1"]
    done, report = bench(tmp_path, *flags, "--max-length", "64", "--variants", "raysft")
    assert done.returncode == 0, done.stderr
    batch = report["batch"]
    assert (batch["shortest"], batch["longest"]) == (2 * 6 + 1, 2 * 26 + 1)
    assert batch["tokens"] == sum(2 * n + 1 for n in (6, 16, 26))


def test_a_backbone_needs_data(tiny_backbone: Path, tmp_path: Path) -> None:
    done, _ = bench(tmp_path, "--backbone", str(tiny_backbone))
    assert done.returncode == 2
    assert "--data" in done.stderr


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    import bench_train
    import train_inputs

    return bench_train, train_inputs


def test_synthetic_lengths_are_spread_as_measured(modules: tuple[ModuleType, ModuleType]) -> None:
    lengths = sorted(modules[1].lengths(2000, longest=800))
    assert sum(lengths) / 2000 == pytest.approx(216, rel=0.01)
    assert lengths[1980] == pytest.approx(425, rel=0.02)
    assert sum(modules[1].lengths(16, longest=800)) / 16 == pytest.approx(216, rel=0.02)


def test_other_losses_are_seen(modules: tuple[ModuleType, ModuleType]) -> None:
    disagreement = modules[0].disagreement
    assert disagreement({"a": [10.0, 9.0], "b": [10.01, 9.01], "c": [10.0, 9.0]}, 2e-3) == ""
    assert "b does not" in disagreement({"a": [10.0, 9.0], "b": [10.0, 9.5], "c": [10.0, 9.0]}, 2e-3)
    assert "step 1" in disagreement({"a": [10.0], "b": [math.nan], "c": [10.0]}, 2e-3)
