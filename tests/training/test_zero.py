"""DeepSpeed ZeRO 0-3 in two workers against the plain loop, and against itself after a stop."""

import gc
import json
import math
import os
import random
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from raysft.config import Job, LoraConfig, SweepConfig, TrialConfig
from raysft.inprocess import bench_here
from raysft.objectives import Power, build
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.store import Store
from raysft.training.engine import load_weights
from raysft.training.model import SFTModel
from raysft.training.zero import IN_CHECKPOINTS, ZeroStageEnum
from raysft.trial import Bench
from tests.training.workers import end_group, run_group, start_group, train

Make = Callable[..., SweepConfig]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluated(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def run_variants(variants: list[dict[str, Any]], folder: Path) -> None:
    """A worker: one bench per variant, its trials one after another in one process group."""
    libraries_quiet()
    for variant in variants:
        bench = Bench(SweepConfig.model_validate(variant["config"]), "zero", Ranks(), torch.device("cpu"))
        for name, objective, stop_after in variant["runs"]:
            asked = 0

            def stop(stop_after: int | None = stop_after) -> str | None:
                nonlocal asked
                asked += 1
                return "save" if asked == stop_after else None

            trial = TrialConfig(objective=objective, learning_rate=3e-3, seed=0)
            bench.run(Job(name, trial, folder / name), stop=stop, export=lambda metrics: True)  # type: ignore[arg-type]


def in_group(variants: list[dict[str, Any]], folder: Path) -> None:
    """Run the variants in a group of two workers, each run in a folder of its name."""
    run_group(2, folder / "meet", run_variants, variants, folder)


@pytest.fixture(scope="module")
def variants() -> dict[str, dict[str, Any]]:
    """Changes of the sections training and zero; all run in one group."""
    lora = {"lora": LoraConfig(rank=2).model_dump()}
    return {
        **{f"zero{stage}": {"zero": {"stage": stage}} for stage in range(4)},
        "zero2-offload": {"zero": {"stage": 2, "offload": "optimizer"}},
        "zero2-bf16": {"zero": {"stage": 2}, "training": {"precision": "bf16"}},
        "zero3-bf16": {"zero": {"stage": 3}, "training": {"precision": "bf16"}},
        "zero1-kept": {"zero": {"stage": 1}, "training": {"normalize": "kept"}},
        "zero2-lora": {"zero": {"stage": 2}, "training": lora},
        "zero3-lora": {"zero": {"stage": 3}, "training": lora},
        "zero3-checkpointing": {"zero": {"stage": 3}, "training": {"gradient_checkpointing": True}},
    }


def test_a_stage_is_written_as_every_python_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its value, also where Python pickles members of enumerations by getattr (3.11.0 to 3.11.3)."""
    monkeypatch.setattr(ZeroStageEnum, "__reduce_ex__", lambda stage, _: (getattr, (ZeroStageEnum, stage.name)))
    torch.save({"zero_stage": ZeroStageEnum(2)}, tmp_path / "state.pt")
    assert load_weights(tmp_path / "state.pt", classes=IN_CHECKPOINTS) == {"zero_stage": ZeroStageEnum(2)}


OBJECTIVE = Power(exponent=0.5, threshold=0.02)
# What asks more of the engine than a function of p: the base model beside the trained one, a look at the step's samples
# first, an exponent that moves, the whole distribution, and a threshold that no token reaches on any rank.
OTHERS = {
    "asft": build("asft", kl_weight=1.0),
    "talr": build("talr"),
    "moving": Power(exponent=1, final_exponent=0),
    "smoothed": build("label_smoothing"),
    "nothing": Power(threshold=1.0),
}
ASKED = {"zero0": OTHERS, "zero1": OTHERS, "zero2": OTHERS, "zero3": OTHERS} | {
    name: {"asft": OTHERS["asft"]} for name in ("zero3-bf16", "zero2-lora", "zero3-lora", "zero3-checkpointing")
}


def changed(make: Make, change: dict[str, Any], workers: int) -> SweepConfig:
    training = make().training.model_dump() | change.get("training", {})
    return make(training=training, zero=change.get("zero", {}), workers={"count": workers})


@pytest.mark.slow
def test_zero_stages_equal_the_plain_loop_and_resume_bitwise(
    make_config: Make, tmp_path: Path, variants: dict[str, dict[str, Any]]
) -> None:
    jobs = []
    for name, change in variants.items():
        config = changed(make_config, change, workers=2)
        runs = [
            (f"{name}-stopped", OBJECTIVE, 3),
            (f"{name}-stopped", OBJECTIVE, None),
            (f"{name}-whole", OBJECTIVE, None),
            *((f"{name}-{other}", objective, None) for other, objective in ASKED.get(name, {}).items()),
        ]
        jobs.append({"config": config.model_dump(mode="json"), "runs": runs})
    in_group(jobs, tmp_path)
    for name, change in variants.items():
        bench = bench_here(changed(make_config, change, workers=1))
        trial = TrialConfig(objective=OBJECTIVE, learning_rate=3e-3, seed=0)
        bench.run(Job(name, trial, tmp_path / f"{name}-plain"))
        whole, resumed = losses(tmp_path / f"{name}-whole"), losses(tmp_path / f"{name}-stopped")
        assert resumed == whole, name
        tolerance = 3e-2 if "bf16" in name else 1e-4
        assert whole == pytest.approx(losses(tmp_path / f"{name}-plain"), rel=tolerance), name
        ours, plain = evaluated(tmp_path / f"{name}-whole"), evaluated(tmp_path / f"{name}-plain")
        assert ours["eval/nll"] == pytest.approx(plain["eval/nll"], rel=tolerance), name
        assert (tmp_path / f"{name}-whole" / "model" / "model.safetensors").exists(), name
        for other, objective in ASKED.get(name, {}).items():
            asked = trial.model_copy(update={"objective": objective})
            bench.run(Job(other, asked, tmp_path / f"{name}-{other}-plain"))
            found, expected = losses(tmp_path / f"{name}-{other}"), losses(tmp_path / f"{name}-{other}-plain")
            assert found == pytest.approx(expected, rel=tolerance, abs=1e-6), (name, other)
            assert set(found) == {0.0} if other == "nothing" else len(set(found)) == len(found), (name, other)


@pytest.mark.slow
@pytest.mark.faults
def test_every_stage_skips_a_step_without_a_finite_loss(poisoned: SweepConfig, tmp_path: Path) -> None:
    """Its sample is one worker's; all of them leave the step out, and go on as the plain loop does."""
    variants = {f"zero{stage}": {"stage": stage} for stage in range(4)}
    variants |= {f"zero{stage}-bf16": {"stage": stage} for stage in range(4)}
    jobs = []
    for name, zero in variants.items():
        training = poisoned.training.model_dump() | {"precision": "bf16" if "bf16" in name else "fp32"}
        values = poisoned.model_dump(mode="json") | {"zero": zero, "training": training, "workers": {"count": 2}}
        jobs.append({"config": values, "runs": [(name, OBJECTIVE, None)]})
    in_group(jobs, tmp_path)
    for precision in ("fp32", "bf16"):
        training = poisoned.training.model_copy(update={"precision": precision})
        bench = bench_here(poisoned.model_copy(update={"training": training}))
        trial = TrialConfig(objective=OBJECTIVE, learning_rate=3e-3, seed=0)
        bench.run(Job(precision, trial, tmp_path / precision))
        expected = losses(tmp_path / precision)
        assert [math.isnan(loss) for loss in expected] == [False, False, True, False, False, False]
        for name in variants:
            if name.endswith("bf16") == (precision == "bf16"):
                tolerance = 3e-2 if precision == "bf16" else 1e-4
                assert losses(tmp_path / name) == pytest.approx(expected, rel=tolerance, nan_ok=True), name


# --- workers that come and go, without Ray --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")])
def test_another_number_of_workers_goes_on_where_the_first_stopped(
    make_config: Make, tmp_path: Path, stage: int, precision: str
) -> None:
    """2 -> 1, 1 -> 2: as if nobody had stopped, up to the round-off of other sums."""
    config = changed(make_config, {"zero": {"stage": stage}, "training": {"precision": precision}}, workers=2)
    trial = TrialConfig(objective=OBJECTIVE, learning_rate=3e-3, seed=0)
    told = (config.model_dump_json(), trial.model_dump_json())
    run_group(2, tmp_path / "meet", train, *told, tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    for first, then in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}-{then}"
        run_group(first, tmp_path / f"meet-{first}-{then}-a", train, *told, folder, 3)
        run_group(then, tmp_path / f"meet-{first}-{then}-b", train, *told, folder)
        assert losses(folder) == pytest.approx(whole, rel=3e-2 if precision == "bf16" else 1e-5), (first, then)
        assert not list(folder.glob("**/*universal*"))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("stage", [1, 3])
def test_machines_that_share_a_bucket_alone_go_on_for_one_another(
    make_config: Make, tmp_path: Path, bucket: str, stage: int
) -> None:
    """Two machines, then two others, then one that is alone: each starts with an empty disk."""
    config = changed(make_config, {"zero": {"stage": stage}, "training": {"checkpoint_every": 1}}, workers=2)
    trial = TrialConfig(objective=OBJECTIVE, learning_rate=3e-3, seed=0)
    told = (config.model_dump_json(), trial.model_dump_json())
    run_group(2, tmp_path / "meet", train, *told, tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    for number, (count, stop) in enumerate([(2, 2), (2, 2), (1, None)]):
        uri = f"{bucket}/trial"
        run_group(count, tmp_path / f"meet-{number}", train, *told, tmp_path / "trial", stop, uri)
        kept = Store(tmp_path / f"looked-at-{number}", uri)
        kept.pull(kept.folder)
        if stop:
            done = (number + 1) * stop
            assert losses(kept.folder) == whole[:done]
            steps = sorted(path.name for path in (kept.folder / "checkpoints").iterdir())
            assert steps == [f"step-{done - 1:08d}", f"step-{done:08d}"]
    assert losses(kept.folder) == pytest.approx(whole, rel=1e-5)
    assert evaluated(kept.folder)["eval/nll"] == pytest.approx(evaluated(tmp_path / "whole")["eval/nll"], rel=1e-5)
    assert not (kept.folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.faults
def test_kills_at_any_moment_change_nothing(make_config: Make, tmp_path: Path) -> None:
    """SIGKILL to either of two workers: at the start, in a step, in a checkpoint. KILLS=100 takes minutes."""
    kills, draw = int(os.environ.get("KILLS", "8")), random.Random(0)
    training = {"steps": 60, "checkpoint_every": 3, "log_every": 1}
    config = changed(make_config, {"zero": {"stage": 2}, "training": training}, workers=2)
    trial = TrialConfig(objective=OBJECTIVE, learning_rate=3e-3, seed=0)
    told = (config.model_dump_json(), trial.model_dump_json())
    run_group(2, tmp_path / "warm-up", train, *told, tmp_path / "first")  # the server of the forks imports
    began = time.monotonic()
    run_group(2, tmp_path / "meet", train, *told, tmp_path / "whole")
    seconds, whole, killed, number = time.monotonic() - began, losses(tmp_path / "whole"), 0, 0
    while killed < kills:
        number += 1
        folder, starts = tmp_path / f"trial-{number}", 0
        while not (folder / "result.json").exists():
            starts += 1
            ranks = start_group(2, tmp_path / f"meet-{number}-{starts}", train, *told, folder)
            wait([rank.sentinel for rank in ranks], draw.uniform(0, 1.2 * seconds) if killed < kills else None)
            if all(rank.is_alive() for rank in ranks):
                draw.choice(ranks).kill()
                killed += 1
            end_group(ranks)  # as Ray does with the rest of a group that lost one
        assert losses(folder) == whole, folder
    print(f"{killed} kills of {number} trials")


def count_what_is_left(configs: dict[str, Any], folder: Path) -> None:
    """A worker: after each of a few trials, how many engines and models of theirs still live."""
    libraries_quiet()
    left: dict[str, list[list[int]]] = {}
    for stage, config in configs.items():
        bench = Bench(SweepConfig.model_validate(config), "zero", Ranks(), torch.device("cpu"))
        for number in range(3):
            trial = TrialConfig(objective=Power(), learning_rate=3e-3, seed=number)
            bench.run(Job(f"{number}", trial, folder / f"{stage}-{number}"))
            alive = [type(o) for o in gc.get_objects()]  # without a look at anything lazy, as isinstance would take
            counts = [sum(issubclass(t, kind) for t in alive) for kind in (deepspeed.DeepSpeedEngine, SFTModel)]
            left.setdefault(stage, []).append(counts)
    assert deepspeed.comm.comm.cdb.shm_comm_op is None, "DeepSpeed has compiled a kernel that nothing here uses"
    (folder / "left.json").write_text(json.dumps(left))


@pytest.mark.slow
def test_a_trial_leaves_nothing_behind(make_config: Make, tmp_path: Path) -> None:
    configs = {
        str(n): changed(make_config, {"zero": {"stage": n}}, workers=1).model_dump(mode="json") for n in range(4)
    }
    run_group(1, tmp_path / "meet", count_what_is_left, configs, tmp_path)
    left = json.loads((tmp_path / "left.json").read_text())
    assert left == {stage: [[0, 0]] * 3 for stage in configs}
