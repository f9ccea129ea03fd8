"""The benchmark of the loss head on a tiny shape: that it runs and what it writes, not how long anything takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent
BOUNDS = ["bound fp32", "bound bf16"]
VARIANTS = ["naive fp32", "trl chunked fp32", "raysft fp32", "raysft bf16 autocast", *BOUNDS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Output and JSON of a run where trl cannot be imported, whether it is installed or not."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "trl.py").write_text("raise ImportError('no trl here')\n")
    command = [sys.executable, str(FOLDER / "bench_head.py"), "--shapes", "64,16,256", "--repeats", "1"]
    command += ["--objectives", "0", "1", "p>=.2", "p<=.1", "--variants", *VARIANTS, "--memory-rows", "64"]
    command += ["--threads", "1", "--device", "cpu", "--json", str(folder / "out" / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out" / "bench.json").read_text())


def test_what_cannot_be_imported_is_left_out_and_said(run: tuple[str, dict[str, Any]]) -> None:
    output, report = run
    assert list(report["left_out"]) == ["trl chunked fp32"]
    assert "trl chunked fp32 is left out" in output
    assert "no trl here" in output


def test_each_objective_has_times_ratios_and_shares(run: tuple[str, dict[str, Any]]) -> None:
    (shape,) = run[1]["shapes"]
    assert shape["shape"] == {"rows": 64, "hidden": 16, "vocabulary": 256}
    assert shape["supervised"] == 32
    assert set(shape["bound_calls"]) == set(BOUNDS)
    everywhere = {"naive fp32", "raysft fp32", *BOUNDS}
    ran = {entry["objective"]: set(entry["variants"]) for entry in shape["objectives"]}
    assert ran == {
        "nll": everywhere | {"raysft bf16 autocast"},
        "-p": everywhere | {"raysft bf16 autocast"},
        "-p, p >= 0.2": everywhere,
        "-p, p <= 0.1": everywhere,
    }
    for entry in shape["objectives"]:
        assert 0 <= entry["live"] <= 32
        assert 0 <= entry["kept_share"] <= 1
        for values in entry["variants"].values():
            assert values["times"] == [values["median"]]
            assert all(values[key] > 0 for key in ("median", "vs_naive", "share_of_bound"))
            assert values["vs_trl"] is None


def test_memory_is_measured_for_each_variant_but_the_bounds(run: tuple[str, dict[str, Any]]) -> None:
    report = run[1]
    memory = report["shapes"][0]["memory"]
    assert set(memory) == {"naive fp32", "raysft fp32", "raysft bf16 autocast"}
    gradient_weight, gradient_hidden = 256 * 16 * 4, 64 * 16 * 4
    for found in memory.values():
        assert found["without_grad_weight"] == found["peak"] - gradient_weight
        assert found["without_gradients"] == found["peak"] - gradient_weight - gradient_hidden
        assert set(found["tight"]) == {"peak", "without_grad_weight", "without_gradients"}
    assert [(found["rows"], found["variant"]) for found in report["memory_by_rows"]] == [(64, "raysft fp32")]


@pytest.fixture
def head_variants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import head_variants

    return head_variants


@pytest.mark.parametrize("call", ["mm", "F.linear", "oneDNN linear"])
def test_the_bound_computes_the_products(head_variants: ModuleType, call: str) -> None:
    import torch

    torch.manual_seed(0)
    rows, weight = torch.randn(700, 8), torch.randn(300, 8)  # two blocks of rows; the last tile is a narrow one
    choice = dict.fromkeys(head_variants.PRODUCTS, (call, 128))
    bound = head_variants.Bound("bound fp32", rows, weight, choice)
    live = rows[:600]
    grad_rows, grad_weight = bound.step(live)
    tiles = [slice(start, min(start + 128, 300)) for start in range(0, 300, 128)]
    gradient = torch.cat([bound.gradient[:, : t.stop - t.start] for t in tiles], dim=1)  # one tile serves for all
    gradient = torch.cat([gradient, gradient[: 600 - 512]])
    torch.testing.assert_close(grad_rows, gradient @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_weight, gradient.t() @ live, rtol=1e-4, atol=1e-4)


def test_the_inputs_spread_the_targets_probabilities(head_variants: ModuleType) -> None:
    case = head_variants.make_case(head_variants.Shape(2048, 64, 4096), "cpu")
    logp = (case.hidden.detach() @ case.weight.detach().t()).log_softmax(1)
    supervised = case.labels >= 0
    p = logp[supervised].gather(1, case.labels[supervised][:, None]).exp()
    assert int(supervised.sum()) == 1024
    assert 0.3 < (p >= 0.9).double().mean() < 0.5
    assert 0.15 < (p <= 0.1).double().mean() < 0.35
