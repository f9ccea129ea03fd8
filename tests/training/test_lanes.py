"""Trials side by side against the same trials in turn."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from raysft.backbone import load_model, pack
from raysft.config import Job, SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.objectives import Power
from raysft.objectives.anchored import ASFT
from raysft.objectives.auto import Auto
from raysft.objectives.reweighted import TALR
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.training import lanes
from raysft.training.lanes import why_in_turn
from raysft.trial import Bench, TrialResult

Make = Callable[..., SweepConfig]
CPU = torch.device("cpu")
LORA = {"rank": 4, "alpha": 8}
TRAINING = {"lora": LORA, "learning_rate": 1e-2}
COMPARED = {"train/loss", "train/grad_norm", "train/mean_probability", "train/kept_share", "eval/nll"}
OBJECTIVES = {
    "nll": Power(),
    "-p": Power(exponent=1),
    "threshold": Power(threshold=0.02),
    "below": Power(exponent=0.3, threshold=0.5, keep="below"),
    "talr": TALR(),
    "asft": ASFT(),
    "following": Auto(follow=True, exponent=0.5, capability=0.02, path=((0.001, 0.0), (0.9, 2.0))),
}


def bench_of(config: SweepConfig, count: int) -> Bench:
    libraries_quiet()
    workers = config.workers.model_copy(update={"lanes": count})
    return Bench(config.model_copy(update={"workers": workers}), "plain", Ranks(), CPU)


def jobs_in(folder: Path, rate: float = 1e-2) -> list[Job]:
    """Trials that share neither objective nor rate nor, the last one, data order."""
    trials = {
        name: TrialConfig(objective=objective, learning_rate=rate * (i + 1), seed=int(name == "asft"))
        for i, (name, objective) in enumerate(OBJECTIVES.items())
    }
    return [Job(name, trial, folder / name) for name, trial in trials.items()]


def run_all(bench: Bench, jobs: list[Job], **hooks: Any) -> list[TrialResult]:
    """As many at once as the bench has lanes."""
    with ThreadPoolExecutor(bench.config.workers.lanes) as threads:
        return list(threads.map(lambda job: bench.run(job, **hooks), jobs))


def logged(job: Job) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Job, other: Job, rel: float = 1e-4) -> None:
    ours, theirs = logged(one), logged(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for name in left.keys() & COMPARED:
            assert left[name] == pytest.approx(right[name], rel=rel, abs=rel / 100), (one.trial_id, name)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials shared each pass, forward and backward, once the benches are made."""
    found: list[int] = []
    real = lanes.side_by_side

    def spied(parts: list[lanes.Part]) -> Any:
        found.append(len(parts))
        return real(parts)

    monkeypatch.setattr(lanes, "side_by_side", spied)
    return found


@pytest.mark.parametrize(
    "training",
    [{}, {"gradient_checkpointing": True}, {"normalize": "kept"}, {"micro_batch_tokens": 400}],
    ids=["plain", "gradient checkpointing", "counted ahead", "one micro-batch"],
)
def test_side_by_side_trials_are_those_in_turn(
    make_config: Make, tmp_path: Path, passes: list[int], training: dict[str, Any]
) -> None:
    config = make_config(training=TRAINING | training)
    in_turn, side_by_side = jobs_in(tmp_path / "turn"), jobs_in(tmp_path / "side")
    run_all(bench_of(config, 1), in_turn)
    bench = bench_of(config, 3)
    passes.clear()
    before = {name: weight.clone() for name, weight in bench.base.state_dict().items()}
    run_all(bench, side_by_side)
    for one, other in zip(side_by_side, in_turn, strict=True):
        assert_alike(one, other)
    losses = [logged(job)[-1]["train/loss"] for job in in_turn]
    assert len(set(losses)) == len(losses)
    assert max(passes) == 3
    assert sum(passes) > 1.5 * len(passes), "most passes were shared"
    assert all(torch.equal(before[name], weight) for name, weight in bench.base.state_dict().items())


def test_a_trial_alone_in_its_lane_is_bitwise_the_plain_one(make_config: Make, tmp_path: Path) -> None:
    config = make_config(training=TRAINING)
    (alone, *_), (lane, *_) = jobs_in(tmp_path / "turn"), jobs_in(tmp_path / "side")
    run_all(bench_of(config, 1), [alone])
    run_all(bench_of(config, 2), [lane])
    assert_alike(lane, alone, rel=0)


def test_bf16_is_alike_to_its_round_off(make_config: Make, tmp_path: Path) -> None:
    config = make_config(training=TRAINING | {"precision": "bf16"})
    in_turn, side_by_side = jobs_in(tmp_path / "turn")[:2], jobs_in(tmp_path / "side")[:2]
    run_all(bench_of(config, 1), in_turn)
    run_all(bench_of(config, 2), side_by_side)
    for one, other in zip(side_by_side, in_turn, strict=True):
        assert_alike(one, other, rel=5e-2)


def test_one_trial_fails_and_the_others_go_on(make_config: Make, tmp_path: Path) -> None:
    config = make_config(training=TRAINING)
    good, other = jobs_in(tmp_path / "turn")[:2]
    run_all(bench_of(config, 1), [good, other])
    bench = bench_of(config, 3)
    first, second = jobs_in(tmp_path / "side")[:2]
    wild = Job("wild", TrialConfig(objective=Power(), learning_rate=1e30, seed=0), tmp_path / "wild")
    with ThreadPoolExecutor(3) as threads:
        ended = [threads.submit(bench.run, job) for job in (first, wild, second)]
        with pytest.raises(TrialFailed, match=r"is nan|is inf|no longer numbers"):
            ended[1].result()
        assert [ended[i].result().status for i in (0, 2)] == ["finished", "finished"]
    assert_alike(first, good)
    assert_alike(second, other)


def test_a_saved_lane_goes_on_where_it_was(make_config: Make, tmp_path: Path) -> None:
    config = make_config(training=TRAINING, evaluation={"every": 3})
    whole, cut = jobs_in(tmp_path / "turn")[-2:], jobs_in(tmp_path / "side")[-2:]
    run_all(bench_of(config, 1), whole)
    paused = [Job(job.trial_id, job.trial, job.folder, until=3) for job in cut]
    assert {(r.status, r.step) for r in run_all(bench_of(config, 2), paused)} == {("paused", 3)}
    assert all((job.folder / "checkpoints").exists() for job in cut)
    assert {r.status for r in run_all(bench_of(config, 2), cut)} == {"finished"}
    for one, other in zip(cut, whole, strict=True):
        assert_alike(one, other)


def test_an_exported_model_is_the_trained_one_and_the_base_stays(make_config: Make, tmp_path: Path) -> None:
    bench = bench_of(make_config(training=TRAINING), 2)
    jobs = jobs_in(tmp_path)[:2]
    results = run_all(bench, jobs, export=lambda metrics: True)
    exported = [AutoModelForCausalLM.from_pretrained(job.folder / "model") for job in jobs]
    weights = [model.model.layers[0].self_attn.q_proj.weight for model in exported]
    base = bench.base.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], base)
    for model, result in zip(exported, results, strict=True):
        config = bench.config.model_copy(update={"backbones": bench.config.backbones})
        assert _nll(model, bench, config) == pytest.approx(result.metrics["eval/nll"], rel=1e-5)


def _nll(model: Any, bench: Bench, config: SweepConfig) -> float:
    from raysft.evaluation import heldout_scores

    pack(model)
    budget = config.training.micro_batch_tokens
    return heldout_scores(model.eval(), bench.heldout, budget, bench.collate, bench.ranks, CPU)["eval/nll"]


# --- what cannot share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "reason"),
    [(["q_proj"], None), (["q_proj", "embed_tokens"], "not linear"), (["shared_expert_gate"], "whole rows")],
)
def test_adapters_must_lie_on_linear_layers_of_whole_rows(
    make_config: Make, targets: list[str], reason: str | None
) -> None:
    training = make_config(training=TRAINING | {"lora": LORA | {"target_modules": targets}}).training
    config = Qwen2MoeConfig(
        vocab_size=48, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        shared_expert_intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, num_experts=2,
        decoder_sparse_step=1, num_experts_per_tok=1,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config).eval()
    assert pack(model) is None
    assert why_in_turn(model, training) is None if reason is None else reason in str(why_in_turn(model, training))


def test_a_backbone_with_dropout_is_refused(make_config: Make, tmp_path: Path, tiny_backbone: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=4)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    config = make_config(training=TRAINING, backbones=[{"name": "gpt2", "path": str(folder)}])
    with pytest.raises(InputError, match=r"dropout \(attn_pdrop, embd_pdrop, resid_pdrop"):
        bench_of(config, 2)


def test_dropout_that_is_no_module_is_found(make_config: Make) -> None:
    config = make_config(training=TRAINING)
    model = load_model(config.backbone, "fp32")
    model.config.attention_dropout = 0.1
    assert "attention_dropout" in str(why_in_turn(model, config.training))


def test_sharing_is_proved_on_the_model(make_config: Make) -> None:
    config = make_config(training=TRAINING)
    model = load_model(config.backbone, "fp32")
    assert pack(model) is None
    assert why_in_turn(model, config.training) is None
    assert all(weight.requires_grad for weight in load_model(config.backbone, "fp32").parameters())
