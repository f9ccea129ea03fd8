"""What the benchmark of training steps compares: ways to step one model on the same global batch.

Each variant lives in a process of its own and steps whenever it is told to: so all can take turns, none meets what
another leaves behind, and each one's memory can be told.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from telling import reset_peak, resident
from torch import nn
from transformers import PreTrainedModel

from raysft.attention import within_samples
from raysft.config import SweepConfig, TrialConfig
from raysft.data.batch import Batch
from raysft.data.order import SampleOrder
from raysft.inprocess import bench_here
from raysft.objectives import IGNORE_INDEX, Power
from raysft.objectives.head import AnyObjective, HeadOutput
from raysft.store import Store
from raysft.training.clock import Clock
from raysft.training.engine import PlainEngine
from raysft.training.flops import Flops
from raysft.training.loop import Hooks, Loop
from raysft.training.model import SFTModel, trainable_model

STEPS = 10**6  # more than are ever made, so that no variant ends by itself


@dataclass(frozen=True)
class Setup:
    """What a variant gets. config: a study's; its training data are the one global batch that every step is on."""

    config: SweepConfig
    folder: Path
    exponent: float
    micro_batch: int
    max_length: int
    packed_length: int
    threads: int

    @property
    def trial(self) -> TrialConfig:
        rate = self.config.training.learning_rate
        return TrialConfig(objective=Power(exponent=self.exponent), learning_rate=rate, seed=0)


@dataclass(frozen=True)
class Ready:
    """notes: what a reader should know of the variant, e.g. the attention it uses."""

    notes: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """seconds: of one optimizer step; processed: tokens that went through the model, padding included; peak: bytes."""

    seconds: float
    loss: float
    processed: int
    peak: int


@dataclass
class Gate:
    """A variant's connection: waits for its turn, and tells what a step took."""

    connection: Connection
    processed: int = 0
    started: float = field(default=0.0, init=False)

    def ready(self, model: nn.Module, notes: dict[str, Any]) -> None:
        """model: the transformers model that is trained; what goes through its embedding is counted."""

        def count(module: nn.Module, inputs: tuple[torch.Tensor], output: Any) -> None:
            self.processed += inputs[0].numel()

        model.get_input_embeddings().register_forward_hook(count)  # type: ignore[operator]
        self.connection.send(Ready(notes))

    def open(self) -> bool:
        """Waits; whether to make another step."""
        again: bool = self.connection.recv()
        if again:
            self.processed = 0
            _reset_peak()
            self.started = time.perf_counter()
        return again

    def close(self, loss: float) -> None:
        """loss: mean over the supervised tokens of the step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        self.connection.send(Step(seconds, loss, self.processed, _peak()))


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        reset_peak()


def _peak() -> int:
    """Bytes; 0 where nobody counts them."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") if Path("/proc/self/status").exists() else 0


# --- raysft ---------------------------------------------------------------------------------------------------------


def raysft(setup: Setup, gate: Gate) -> None:
    """raysft's own loop and engine, without Ray and DeepSpeed."""
    bench = bench_here(setup.config)
    training = bench.config.training
    model = trainable_model(bench.base, training)
    clock = Clock()
    engine = PlainEngine(SFTModel(model, clock=clock), training, bench.device)
    loop = Loop(
        bench.config, setup.trial, engine, bench.train, bench.ranks, Store(setup.folder), {}, bench.collate, STEPS,
        clock, Flops(model),
    )  # fmt: skip
    engine.train(True)
    gate.ready(model, {"attention": model.config._attn_implementation, "objective": setup.trial.objective.label()})
    step = 0
    while gate.open():
        metrics, _ = loop._step(step, Hooks(evaluate=dict))
        gate.close(metrics["train/loss"])
        step += 1


# --- the paper's way ------------------------------------------------------------------------------------------------


class FullLogits(nn.Module):
    """-log p from the whole logits: raised to fp32, log_softmax, and the targets' entries. Stands in for SFTModel."""

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, batch: Batch, objective: AnyObjective) -> HeadOutput:
        """Of a batch of [B, T] tokens; the logits are [B, T, V]."""
        with within_samples(batch) as asked:
            output = self.causal_lm(input_ids=batch.input_ids, use_cache=False, **asked)
        logits, targets = output.logits[:, :-1].float(), batch.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        logp = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = objective.loss(logp).masked_fill(~supervised, 0.0).sum()
        return loss, supervised.sum(), supervised.sum(), logp.detach()


def paper(setup: Setup, gate: Gate, to_longest: bool) -> None:
    """Every sample padded to max_length, or to the longest of its micro-batch; the engine is raysft's."""
    training = setup.config.training.model_copy(update={"packing": False})
    bench = bench_here(setup.config.model_copy(update={"training": training}))
    pad_id = bench.collate.pad_id
    engine = PlainEngine(FullLogits(trainable_model(bench.base, training)), training, bench.device)  # type: ignore[arg-type]
    order = SampleOrder(len(bench.train), training.global_batch_size, setup.trial.seed)
    supervised = int(bench.train.supervised.sum())
    model = engine.full_model()
    engine.train(True)
    gate.ready(model, {"attention": model.config._attn_implementation, "micro_batch": setup.micro_batch})
    step = 0
    while gate.open():
        indices, total = order.at(step), 0.0
        for start in range(0, len(indices), setup.micro_batch):
            batch = bench.collate([bench.train.sample(int(i)) for i in indices[start:][: setup.micro_batch]])
            loss = engine.forward(batch if to_longest else _padded(batch, pad_id, setup.max_length), Power())[0]
            total += loss.item()
            engine.backward(loss / supervised, boundary=start + setup.micro_batch >= len(indices))
        engine.step(training.learning_rate)
        gate.close(total / supervised)
        step += 1


def _padded(batch: Batch, pad_id: int, length: int) -> Batch:
    def pad(values: torch.Tensor, by: int) -> torch.Tensor:
        return nn.functional.pad(values, (0, length - values.shape[1]), value=by)

    return replace(batch, input_ids=pad(batch.input_ids, pad_id), labels=pad(batch.labels, IGNORE_INDEX))


# --- TRL ------------------------------------------------------------------------------------------------------------


def trl(setup: Setup, gate: Gate, packing: bool, loss_type: str) -> None:
    """TRL's SFTTrainer on the same tokens and labels, all of them in every step; under bf16 its autocast."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    bench = bench_here(setup.config)
    training, warnings = bench.config.training, _warnings_of("trl")
    samples = [bench.train.sample(i) for i in range(len(bench.train))]
    rows = {"input_ids": [s[0].tolist() for s in samples], "labels": [s[1].tolist() for s in samples]}

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = not gate.open()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            gate.close(trainer.step_loss)
            trainer.step_loss = 0.0
            control.should_training_stop = not gate.open()

    class Summing(SFTTrainer):
        step_loss = 0.0  # each micro-batch's loss is already divided by the step's supervised tokens

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.step_loss += loss.item()
            return loss

    model = trainable_model(bench.base, training).float()  # SFTTrainer's own default, too
    trainer = Summing(
        model=model,
        processing_class=bench.tokenizer,
        train_dataset=Dataset.from_dict(rows),
        callbacks=[Turns()],
        args=SFTConfig(
            output_dir=str(setup.folder),
            packing=packing,
            max_length=setup.packed_length if packing else setup.max_length,
            loss_type=loss_type,
            per_device_train_batch_size=1 if packing else setup.micro_batch,
            bf16=training.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            optim="adamw_torch",
            learning_rate=training.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=training.betas[0],
            adam_beta2=training.betas[1],
            adam_epsilon=training.eps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            max_steps=STEPS,
            report_to=[],
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    batches = len(trainer.get_train_dataloader())
    trainer.args.gradient_accumulation_steps = batches  # all samples, packed or not, are one step
    attention = model.config._attn_implementation
    notes = {"attention": attention, "loss_type": loss_type, "micro_batches": batches, "warnings": warnings}
    gate.ready(model, notes)
    trainer.train()


def _warnings_of(library: str) -> list[str]:
    """What the library warns of from now on, each text once."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (text := record.getMessage()) not in found:
                found.append(text)

    logging.getLogger(library).addHandler(Keep(logging.WARNING))
    return found


# --- their processes ------------------------------------------------------------------------------------------------

LOSS_TYPES = ("chunked_nll", "nll")
VARIANTS: dict[str, Callable[[Setup, Gate], None]] = {
    "paper": partial(paper, to_longest=False),
    "paper-longest": partial(paper, to_longest=True),
    **{f"trl {kind}": partial(trl, packing=False, loss_type=kind) for kind in LOSS_TYPES},
    **{f"trl-packed {kind}": partial(trl, packing=True, loss_type=kind) for kind in LOSS_TYPES},
    "raysft": raysft,
}


def live(name: str, setup: Setup, connection: Connection, log: Path) -> None:
    """The process of a variant. All that libraries say goes to `log`."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(setup.threads)
    setup.folder.mkdir(parents=True, exist_ok=True)
    VARIANTS[name](setup, Gate(connection))
