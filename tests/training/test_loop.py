"""The loop in one process: it trains the configured objective, divides once, and resumes bitwise."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.config import Job, LoraConfig, SweepConfig, TrialConfig
from raysft.data.order import SampleOrder
from raysft.errors import TrialFailed
from raysft.inprocess import bench_here
from raysft.objectives import IGNORE_INDEX, Power, build, known, naive_objective
from raysft.objectives.auto import Auto, exponent_at
from raysft.objectives.head import Reference
from raysft.ranks import Ranks
from raysft.store import Store
from raysft.training.clock import Clock
from raysft.training.engine import PlainEngine
from raysft.training.flops import Flops
from raysft.training.loop import Hooks, Loop, learning_rate
from raysft.training.model import SFTModel, plain, trainable_model
from raysft.trial import Bench

Make = Callable[..., SweepConfig]
OBJECTIVES = [
    Power(exponent=0),
    Power(exponent=1),
    Power(exponent=0.5, threshold=0.02),
    Power(exponent=0, threshold=0.03, keep="below"),
    Power(exponent=1, threshold=0.01, upper=0.05),
    Power(exponent=0, final_exponent=2, schedule="cosine"),
    Auto(exponent=0.7),
    *(build(name) for name in known() if name not in ("power", "auto")),
]


STEPS, STEP = 4, 1
AT = STEP / STEPS  # the share of the training that is done


def trial_of(objective: Power, rate: float = 3e-3) -> TrialConfig:
    return TrialConfig(objective=objective, learning_rate=rate, seed=0)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(bench: Bench, folder: Path, objective: Power, stop_after: int | None = None) -> str:
    """Train; with stop_after, save at the end of that step and leave."""
    asked = 0

    def stop() -> str | None:
        nonlocal asked
        asked += 1
        return "save" if asked == stop_after else None

    return bench.run(Job(folder.name, trial_of(objective), folder), stop=stop).status  # type: ignore[arg-type]


def oracle_gradients(bench: Bench, objective: Any, indices: list[int], normalize: str) -> dict[str, torch.Tensor]:
    """float64 gradients of the objective's mean over the samples, one sample at a time, by full logits and autograd."""
    model = trainable_model(bench.base, bench.config.training).double()
    base = deepcopy(bench.base).double()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    pairs = [[torch.as_tensor(array)[None] for array in bench.train.sample(index)] for index in indices]
    if objective.needs_sample_nll:
        with torch.no_grad():
            losses = [base(input_ids=tokens, labels=labels).loss for tokens, labels in pairs]
        objective = objective.at(AT, torch.stack(losses))
    objective = objective.at(AT)
    for tokens, labels in pairs:
        output = plain(model).get_output_embeddings()
        decoder = getattr(plain(model), plain(model).base_model_prefix)
        hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1]
        with torch.no_grad():
            logits = base(input_ids=tokens).logits[0, :-1]
        reference = Reference(logits, torch.eye(logits.shape[1], dtype=logits.dtype))
        loss, supervised, kept, _ = naive_objective(
            hidden, output.weight, labels[0, 1:], objective, reference=reference
        )
        total = total + loss
        count += int(kept if normalize == "kept" else supervised)
    (total / count).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.label())
@pytest.mark.parametrize("normalize", ["supervised", "kept"])
@pytest.mark.parametrize("path", ["packed", "padded", "checkpointing", "lora", "one-micro-batch"])
def test_first_gradient_is_that_of_the_objective(
    make_config: Make, objective: Power, normalize: str, path: str
) -> None:
    """The unclipped gradient of a step equals the float64 oracle for every objective on every path."""
    changes: dict[str, object] = {"normalize": normalize, "max_grad_norm": 1e9}
    if path == "checkpointing":
        changes["gradient_checkpointing"] = True
    if path == "lora":
        changes["lora"] = LoraConfig(rank=2).model_dump()
    if path == "one-micro-batch":
        changes["micro_batch_tokens"] = 4096
    if path == "padded":
        changes["packing"] = False
    config = make_config()
    config = make_config(training=config.training.model_dump() | changes)
    bench = bench_here(config)
    torch.manual_seed(0)
    lora = config.training.lora is not None
    model = SFTModel(trainable_model(bench.base, config.training), None if lora else bench.base)
    engine = PlainEngine(model, config.training, torch.device("cpu"))
    taken: dict[str, torch.Tensor] = {}

    def take(rate: float) -> float:
        names = [n for n, p in model.causal_lm.named_parameters() if p.requires_grad]
        taken.update(zip(names, [m.grad.clone() for m in engine.master], strict=True))
        return 0.0

    engine.step = take  # type: ignore[method-assign]
    loop = Loop(
        config, trial_of(objective), engine, bench.train, Ranks(), Store(config.folder), {}, bench.collate, STEPS,
        Clock(), Flops(model.causal_lm),
    )  # fmt: skip
    engine.train(True)
    loop._step(STEP, Hooks(evaluate=dict))
    torch.manual_seed(0)
    expected = oracle_gradients(bench, objective, [int(i) for i in loop.order.at(STEP)], normalize)
    assert taken.keys() == expected.keys()
    for name, gradient in taken.items():
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-4, atol=1e-7)


PATH = ((0.001, 0.0), (0.9, 2.0))  # wide enough for the exponent to move at each step
FOLLOWING = Auto(follow=True, exponent=0.5, capability=0.02, path=PATH)


@pytest.mark.parametrize(
    ("precision", "objective"),
    [("fp32", Power(exponent=0.5)), ("bf16", Power(exponent=0.5)), ("fp32", FOLLOWING)],
    ids=["fp32", "bf16", "following"],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    make_config: Make, tmp_path: Path, precision: str, objective: Any
) -> None:
    config = make_config()
    config = make_config(training=config.training.model_dump() | {"precision": precision})
    bench = bench_here(config)
    assert run(bench, tmp_path / "whole", objective) == "finished"
    expected = losses(tmp_path / "whole")
    assert len(expected) == 6
    for stop_after in range(1, 6):
        folder = tmp_path / f"stopped-{stop_after}"
        assert run(bench, folder, objective, stop_after) == "saved"
        assert run(bench, folder, objective) == "finished"
        assert losses(folder) == expected


def test_a_following_exponent_moves_with_the_mean_of_p(make_config: Make, tmp_path: Path) -> None:
    """By hand: the mean starts at the capability and takes a tenth of each step's p; the step before counts."""
    config = make_config()
    bench = bench_here(config)
    run(bench, tmp_path / "t", FOLLOWING)
    lines = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    mean = 0.02
    for line in lines:
        assert line["train/exponent"] == pytest.approx(exponent_at(PATH, mean), rel=1e-12)
        mean = 0.9 * mean + 0.1 * line["train/mean_probability"]
    assert len({line["train/exponent"] for line in lines}) == len(lines)
    fixed = Auto(exponent=0.5)
    run(bench, tmp_path / "fixed", fixed)
    run(bench, tmp_path / "power", Power(exponent=0.5))
    assert losses(tmp_path / "fixed") == losses(tmp_path / "power"), "auto that does not follow is the family"
    assert losses(tmp_path / "t") != losses(tmp_path / "fixed")


def test_a_trial_pauses_where_it_is_told_to_and_goes_on_bitwise(make_config: Make, tmp_path: Path) -> None:
    """No step is done twice, and a group that gets a paused trial once more hands it back untouched."""
    config = make_config()
    config = make_config(training=config.training.model_dump() | {"checkpoint_every": 5}, evaluation={"every": 2})
    bench = bench_here(config)
    trial = trial_of(Power(exponent=0.5))
    bench.run(Job("whole", trial, tmp_path / "whole"))
    folder = tmp_path / "paused"
    trained = []
    for until in (2, 2, 4, 6):
        steps: list[int] = []
        result = bench.run(Job("paused", trial, folder, until), stop=lambda steps=steps: steps.append(1))  # type: ignore[misc]
        trained.append(len(steps))
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert (result.step, last["step"]) == (until, until)
        assert result.metrics == {k: v for k, v in last.items() if k not in ("step", "time")}
        assert "eval/nll" in result.metrics
        assert result.status == ("finished" if until == 6 else "paused")
        saved = [] if until == 6 else [f"step-{until:08d}"]
        assert [path.name for path in folder.glob("checkpoints/*")] == saved
    assert trained == [2, 0, 2, 2]
    assert losses(folder) == losses(tmp_path / "whole")


def test_a_rung_beyond_the_end_means_nothing(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    assert bench.run(Job("t", trial_of(Power()), tmp_path / "t", until=100)).status == "finished"


def test_bench_reused_is_bitwise_a_fresh_one(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    used = bench_here(config)
    run(used, tmp_path / "first", Power(exponent=1))
    run(used, tmp_path / "second", Power(exponent=0))
    run(bench_here(config), tmp_path / "fresh", Power(exponent=0))
    assert losses(tmp_path / "second") == losses(tmp_path / "fresh")


def test_accumulation_changes_nothing_but_round_off(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    budgets = (1, 60, 4096)
    for tokens in budgets:
        changed = make_config(training=config.training.model_dump() | {"micro_batch_tokens": tokens})
        run(bench_here(changed), tmp_path / str(tokens), Power(exponent=0.5, threshold=0.02))
    single, some, whole = (losses(tmp_path / str(tokens)) for tokens in budgets)
    assert single == pytest.approx(whole, rel=1e-4)
    assert some == pytest.approx(whole, rel=1e-4)


def test_packing_changes_nothing_but_round_off(make_config: Make, tmp_path: Path) -> None:
    """Every step has the same samples, packed or padded."""
    for packing in (True, False):
        config = make_config(training=make_config().training.model_dump() | {"packing": packing})
        bench = bench_here(config)
        assert bench.collate.packed == packing
        run(bench, tmp_path / str(packing), Power(exponent=0.5, threshold=0.02))
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)


def test_training_learns(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    longer = make_config(training=config.training.model_dump() | {"steps": 60})
    run(bench_here(longer), tmp_path / "t", Power())
    curve = losses(tmp_path / "t")
    assert curve[-1] < 0.6 * curve[0]


def test_damaged_checkpoint_is_passed_over(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    folder = tmp_path / "t"
    run(bench, folder, Power(), stop_after=5)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    state = newest / "plain.pt"
    state.write_bytes(state.read_bytes()[:-7])
    assert run(bench, folder, Power()) == "finished"
    assert run(bench, tmp_path / "whole", Power()) == "finished"
    assert losses(folder) == losses(tmp_path / "whole")


def test_checkpoint_of_another_objective_is_refused(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    run(bench, tmp_path / "t", Power(), stop_after=3)
    with pytest.raises(TrialFailed, match="was written with config"):
        run(bench, tmp_path / "t", Power(exponent=1))


def test_exploding_loss_fails_the_trial_and_not_the_bench(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    bench = bench_here(make_config(training=config.training.model_dump() | {"max_skipped_steps": 0}))
    with torch.no_grad():
        original = bench.base.get_output_embeddings().weight[3].clone()
        bench.base.get_output_embeddings().weight[3] = math.nan
    with pytest.raises(TrialFailed, match="loss is nan at step 1"):
        run(bench, tmp_path / "broken", Power())
    with torch.no_grad():
        bench.base.get_output_embeddings().weight[3] = original
    assert run(bench, tmp_path / "next", Power()) == "finished"


def test_a_step_without_a_finite_loss_is_skipped(poisoned: SweepConfig, tmp_path: Path) -> None:
    """Against a plain loop that leaves that step out; and across a resume right after it."""
    bench = bench_here(poisoned)
    objective = Power(exponent=0.5)
    assert run(bench, tmp_path / "whole", objective) == "finished"
    found = losses(tmp_path / "whole")
    assert [math.isfinite(loss) for loss in found] == [True, True, False, True, True, True]
    points = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [point.get("train/skipped_steps") for point in points] == [None, None, 1, 1, 1, 1]
    assert found == pytest.approx(losses_without(bench, objective, 2), rel=1e-5, nan_ok=True)
    for stop_after in (2, 3, 4):
        folder = tmp_path / f"stopped-{stop_after}"
        assert run(bench, folder, objective, stop_after) == "saved"
        assert run(bench, folder, objective) == "finished"
        assert str(losses(folder)) == str(found)
        assert '"train/skipped_steps": 1' in (folder / "metrics.jsonl").read_text().splitlines()[-1]


def losses_without(bench: Bench, objective: Power, skipped: int) -> list[float]:
    """Of training by full logits, autograd and torch's AdamW, with one sample after the other."""
    training = bench.config.training
    model = deepcopy(bench.base).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=training.betas, eps=training.eps, weight_decay=0.01)
    order = SampleOrder(len(bench.train), training.global_batch_size, 0)
    found = []
    for step in range(bench.steps):
        total, count = torch.zeros(()), 0
        for tokens, labels in (bench.train.sample(int(i)) for i in order.at(step)):
            logp = model(input_ids=torch.as_tensor(tokens)[None]).logits[0, :-1].log_softmax(1)
            target = torch.as_tensor(labels)[1:]
            there = target != IGNORE_INDEX
            total = total + objective.loss(logp[there].gather(1, target[there, None])).sum()
            count += int(there.sum())
        found.append(float(total / count))
        optimizer.zero_grad()
        if step != skipped:
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, 3e-3, step, bench.steps)
            optimizer.step()
    return found


@pytest.mark.parametrize("most", [0, 1])
def test_too_many_skipped_steps_fail_the_trial(poisoned: SweepConfig, tmp_path: Path, most: int) -> None:
    """Two epochs of eight steps: the sample comes twice."""
    changes = {"steps": 16, "max_skipped_steps": most}
    training = poisoned.training.model_copy(update=changes)
    bench = bench_here(poisoned.model_copy(update={"training": training}))
    order = SampleOrder(len(bench.train), 8, 0)
    second = next(step for step in range(8, 16) if order.at(2)[5] in order.at(step))
    said = ["loss is nan at step 3 .*0.003", f"at step {second + 1} .*, after skipping 1"][most]
    with pytest.raises(TrialFailed, match=said):
        run(bench, tmp_path / "t", Power())
    assert run(bench_here(poisoned), tmp_path / "next", Power()) == "finished"


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_that_keep_all_or_nothing(make_config: Make, tmp_path: Path, threshold: float) -> None:
    bench = bench_here(make_config())
    run(bench, tmp_path / "t", Power(threshold=threshold))
    curve = losses(tmp_path / "t")
    assert all(value == 0 for value in curve) if threshold == 1 else all(value > 0 for value in curve)


def test_export_loads_with_from_pretrained(make_config: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = make_config()
    lora = make_config(training=config.training.model_dump() | {"lora": LoraConfig(rank=2).model_dump()})
    for name, changed in (("full", config), ("lora", lora)):
        bench = bench_here(changed)
        result = bench.run(Job(name, trial_of(Power()), tmp_path / name), export=lambda metrics: True)
        folder = tmp_path / name / "model"
        assert list(folder.glob("*.safetensors"))
        assert not list(folder.glob("*.bin"))
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.eos_token_id == bench.tokenizer.eos_token_id
        from raysft.evaluation import evaluate

        again = evaluate(model, tokenizer, bench.heldout, changed, Ranks(), torch.device("cpu"), seed=0)
        assert again.metrics["eval/nll"] == pytest.approx(result.metrics["eval/nll"], rel=1e-5)


def test_learning_rate_warms_up_and_ends_near_zero(make_config: Make) -> None:
    training = make_config().training.model_copy(update={"warmup_ratio": 0.1, "schedule": "cosine"})
    rates = [learning_rate(training, 1.0, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == 1.0
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    linear = training.model_copy(update={"schedule": "linear", "warmup_ratio": 0.0})
    assert learning_rate(linear, 2.0, 50, 100) == pytest.approx(1.0)


def test_prompt_is_not_supervised(make_config: Make) -> None:
    bench = bench_here(make_config())
    _, labels = bench.train.sample(0)
    prompt = len("1+2?")
    assert (labels[:prompt] == IGNORE_INDEX).all()
    assert (labels[prompt:] != IGNORE_INDEX).all()


def test_the_last_line_says_where_the_time_went(make_config: Make, tmp_path: Path) -> None:
    run(bench_here(make_config()), tmp_path / "t", Power())
    last = json.loads((tmp_path / "t" / "metrics.jsonl").read_text().splitlines()[-1])
    phases = {key: value for key, value in last.items() if key.startswith("time/") and key != "time/seconds"}
    expected = "start data forward head backward optimizer communication evaluation checkpoint"
    assert {key.removeprefix("time/") for key in phases} == set(expected.split())
    assert all(0 < share < 1 for share in phases.values())
    assert 0.5 < sum(phases.values()) <= 1
    assert last["time/seconds"] > 0
    assert last["train/tflops"] > 0
