"""The plain engine against torch's own AdamW and clipping, step by step."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from raysft.backbone import load_model
from raysft.config import LoraConfig, SweepConfig, TrainingConfig
from raysft.data.batch import Batch
from raysft.objectives import Power
from raysft.quiet import libraries_quiet
from raysft.training.engine import PlainEngine
from raysft.training.model import SFTModel, trainable_model

Make = Callable[..., SweepConfig]
CPU = torch.device("cpu")
RATES = (1e-3, 5e-4, 2e-3)


def batch(seed: int) -> Batch:
    """Two samples of 12 tokens, all supervised."""
    tokens = torch.randint(0, 44, (2, 12), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, tokens.clone(), (12, 12), packed=False)


def engine_of(config: SweepConfig, **changes: object) -> PlainEngine:
    libraries_quiet()
    training = TrainingConfig.model_validate(config.training.model_dump() | changes)
    base = load_model(config.backbones[0], training.precision)
    torch.manual_seed(0)
    return PlainEngine(SFTModel(trainable_model(base, training)), training, CPU)


def train(engine: PlainEngine, steps: range) -> list[float]:
    """Two micro-batches a step; returns the norms."""
    norms = []
    for step in steps:
        for part in (0, 1):
            loss = engine.forward(batch(2 * step + part), Power())[0] / 44
            engine.backward(loss, boundary=part == 1)
        norms.append(engine.step(RATES[step % len(RATES)]))
    return norms


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_steps_are_adamw_on_the_clipped_sum_of_gradients(make_config: Make, clip: float) -> None:
    engine = engine_of(make_config(), max_grad_norm=clip)
    oracle = deepcopy(engine.model.causal_lm).double()
    training = make_config().training
    optimizer = torch.optim.AdamW(
        oracle.parameters(), betas=training.betas, eps=training.eps, weight_decay=training.weight_decay
    )
    expected = []
    for step, rate in enumerate(RATES):
        for part in (0, 1):
            tokens = batch(2 * step + part)
            logits = oracle(input_ids=tokens.input_ids).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), tokens.labels[:, 1:].reshape(-1), reduction="sum"
            )
            (loss / 44).backward()
        gradients = [p.grad for p in oracle.parameters()]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]
        for gradient in gradients:
            gradient *= min(1.0, clip / float(norm))  # type: ignore[operator]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(norm))
    assert train(engine, range(len(RATES))) == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0.05  # so that the first case clips
    ours = dict(engine.full_model().named_parameters())
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(ours[name].double(), parameter, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"lora": LoraConfig(rank=2).model_dump()}])
def test_a_loaded_state_goes_on_bitwise(make_config: Make, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = engine_of(make_config(), **changes)
    train(whole, range(2))
    whole.save(tmp_path)
    expected = train(whole, range(2, 4))
    fresh = engine_of(make_config(), **changes)
    fresh.load(tmp_path, world=1)
    assert train(fresh, range(2, 4)) == expected
    pairs = zip(whole.full_model().parameters(), fresh.full_model().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_updates_too_small_for_bf16_add_up_in_the_master_weights(make_config: Make) -> None:
    engine = engine_of(make_config(), precision="bf16", weight_decay=0.0)
    before = [master.clone() for master in engine.master]
    published = [working.clone() for working in engine.working]
    for part in range(3):
        engine.backward(engine.forward(batch(part), Power())[0], boundary=True)
        engine.step(1e-7)
    assert all(w.dtype == torch.bfloat16 for w in engine.working)
    assert all(m.dtype == torch.float32 for m in engine.master)
    assert all(not torch.equal(a, b) for a, b in zip(before, engine.master, strict=True))
    norms = [i for i, w in enumerate(published) if (w == 1).all()]  # 1 and 1 + 1e-7 are one number in bf16
    assert norms
    assert all(torch.equal(published[i], engine.working[i]) for i in norms)


def test_bf16_gradients_are_summed_in_fp32(make_config: Make) -> None:
    engine = engine_of(make_config(), precision="bf16")
    parts = []
    for part in range(4):
        engine.backward(engine.forward(batch(part), Power())[0] / 44, boundary=False)
        parts.append([m.grad.clone() for m in engine.master])  # type: ignore[union-attr]
    single = engine_of(make_config(), precision="bf16")
    single.backward(single.forward(batch(3), Power())[0] / 44, boundary=True)
    for before, after, last in zip(parts[2], parts[3], single.master, strict=True):
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, before + last.grad, rtol=0, atol=0)
    assert all(working.grad is None for working in engine.working)


def test_closing_gives_the_gradients_back(make_config: Make) -> None:
    engine = engine_of(make_config())
    engine.backward(engine.forward(batch(0), Power())[0], boundary=False)
    assert any(master.grad is not None for master in engine.master)
    engine.close()
    assert all(master.grad is None for master in engine.master)


def test_mode_reaches_the_model(make_config: Make) -> None:
    engine = engine_of(make_config())
    for mode in (True, False):
        engine.train(mode)
        assert engine.full_model().training is mode
