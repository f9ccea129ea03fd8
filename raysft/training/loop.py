"""The training loop: the same in one plain process and in a group of DeepSpeed workers.

Losses are sums, divided once by a count over all ranks and micro-batches of a step (arXiv 2510.00526, Eq. 4, or the
kept tokens only). The data of a step, its learning rate and its random numbers are functions of the seed and the step,
so a run that resumes at any step goes on bitwise as if it had not stopped.
"""

import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch

from raysft.config import SweepConfig, TrainingConfig, TrialConfig
from raysft.data.batch import Batch, Collate
from raysft.data.order import SampleOrder
from raysft.data.packing import deal
from raysft.data.tokenized import TokenizedData
from raysft.errors import TrialFailed
from raysft.objectives import IGNORE_INDEX, Power
from raysft.objectives.head import AnyObjective, HeadOutput
from raysft.publish import append
from raysft.ranks import Ranks
from raysft.store import Store
from raysft.training import checkpoint
from raysft.training.clock import Clock
from raysft.training.engine import Engine
from raysft.training.flops import Flops, peak

Metrics = dict[str, float]
Stop = Literal["drop", "save"]
KEEP_CHECKPOINTS = 2
MEMORY = 0.9  # of the running mean of p: about ten steps
STATE = "loop.json"  # in a checkpoint: what the loop itself remembers


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its surroundings.

    evaluate: held-out metrics of the engine's model, called on every rank, same result on every rank.
    report: rank 0 only; (completed steps, latest metrics).
    stop: rank 0 only, between steps; "drop" ends the trial, "save" writes a checkpoint first.
    """

    evaluate: Callable[[], Metrics]
    report: Callable[[int, Metrics], None] = lambda step, metrics: None
    stop: Callable[[], Stop | None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """stopped: None at the end; "pause" where the trial was to go no further for now."""

    step: int
    stopped: Stop | Literal["pause"] | None
    metrics: Metrics


def learning_rate(training: TrainingConfig, peak: float, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up to `peak`, then the schedule down to 0."""
    warmup = round(training.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * ((1 - progress) if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


class Loop:
    """One trial. identity: what a checkpoint must agree with (config, data, engine)."""

    def __init__(
        self,
        config: SweepConfig,
        trial: TrialConfig,
        engine: Engine,
        data: TokenizedData,
        ranks: Ranks,
        store: Store,
        identity: dict[str, Any],
        collate: Collate,
        steps: int,
        clock: Clock,
        flops: Flops,
    ) -> None:
        self.config, self.engine, self.data, self.ranks = config, engine, data, ranks
        self.store, self.identity, self.collate, self.steps = store, identity, collate, steps
        self.clock, self.flops = clock, flops
        self.objective, self.peak, self.seed = trial.objective, trial.learning_rate, trial.seed
        self.mean_probability = trial.objective.follows_from  # this and the next, the same on every rank
        self.skipped = 0  # steps of which no update was made
        self.order = SampleOrder(len(data), config.training.global_batch_size, trial.seed)
        self.checkpoint_every = config.training.checkpoint_every or max(1, steps // 10)
        self.log = MetricLog(store, ranks)

    def run(self, hooks: Hooks, until: int | None = None) -> Outcome:
        """Train from the newest checkpoint, or from the start, to the end or to a stop. Collective.

        until: an evaluation step after which to save and pause; from the end on it means nothing.
        """
        step = self._resume()
        if until is not None and until <= step < self.steps:
            return Outcome(step, "pause", self.log.at(step))  # it got there before its group broke
        every = self.config.evaluation.every
        self.engine.train(True)
        metrics: Metrics = {}
        while step < self.steps:
            metrics, stop = self._step(step, hooks)
            step += 1
            last = step == self.steps
            pause = step == until and not last
            if last or (every and step % every == 0):
                metrics |= self._evaluate(hooks) | self.clock.shares()
            if last or step % self.config.training.log_every == 0 or "eval/nll" in metrics:
                self.log.add(step, metrics)
            if pause or stop == "save" or (step % self.checkpoint_every == 0 and not last):
                self._save(step, keep=1 if pause else KEEP_CHECKPOINTS)
            if "eval/nll" in metrics or step % self.checkpoint_every == 0:
                self.log.flush()
                if self.ranks.rank == 0:
                    hooks.report(step, metrics)
            if (pause or stop) and not last:
                self.log.flush()
                return Outcome(step, stop or "pause", metrics)
        self.log.flush()
        return Outcome(step, None, metrics)

    def _step(self, step: int, hooks: Hooks) -> tuple[Metrics, Stop | None]:
        """One optimizer step: all micro-batches forward and backward, one division, one update."""
        started = time.perf_counter()
        training = self.config.training
        torch.manual_seed(hash((self.seed, step, self.ranks.rank)) & 0x7FFFFFFF)  # dropout, the same after a resume
        with self.clock("data"):
            batches = self._batches(step)
        objective = self._objective(step, batches)
        supervised = float(self.data.supervised[self.order.at(step)].sum())  # known to every rank without asking
        early_count = training.normalize == "kept" and len(batches) > 1
        count = self._kept_ahead(batches, objective) if early_count else supervised
        totals = torch.zeros(4, dtype=torch.float64)  # loss, kept, sum of p, stop
        for index, batch in enumerate(batches):
            with self.clock("forward"):
                output = self.engine.forward(batch, objective)
                totals[:3] += _sums(output)
            if training.normalize == "kept" and not early_count:
                count = float(self._sum(output[2].double().cpu()))
            with self.clock("backward"):
                share = output[0] / max(count, 1.0)
                poison = 0 * share.detach()  # 0; NaN where the loss is not finite, and then so is the gradient
                self.engine.backward(share * (1 + poison), boundary=index == len(batches) - 1)
        if self.ranks.rank == 0:
            totals[3] = {None: 0, "drop": 1, "save": 2}[hooks.stop()]
        loss, kept, probability, stop = self._sum(totals).tolist()
        loss /= max(count, 1.0)
        if self.mean_probability is not None and math.isfinite(probability):
            self.mean_probability = MEMORY * self.mean_probability + (1 - MEMORY) * probability / max(supervised, 1.0)
        rate = learning_rate(training, self.peak, step, self.steps)
        with self.clock("optimizer"):
            norm = self.engine.step(rate)
        if not math.isfinite(norm):
            what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            self._skip(f"{what} at step {step + 1} (learning rate {rate:g})")
        lengths = self.data.lengths[self.order.at(step)]
        seconds = time.perf_counter() - started
        operations = self.flops.step(lengths, supervised) / self.ranks.world / seconds
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": rate,
            "train/kept_share": kept / supervised,
            "train/mean_probability": probability / supervised,
            "train/tokens_per_second": float(lengths.sum()) / seconds,
            "train/tflops": operations / 1e12,
            "train/peak_memory_gib": peak_memory(),
            "train/micro_batch_tokens": training.micro_batch_tokens,
        }
        if (most := peak()) is not None:
            metrics["train/mfu"] = operations / most
        if self.skipped:
            metrics["train/skipped_steps"] = self.skipped
        if objective is not self.objective:
            moved = objective.parameters().items()
            metrics |= {f"train/{name}": value for name, value in moved if isinstance(value, float)}
        return metrics, {0: None, 1: "drop", 2: "save"}[int(stop)]

    def _skip(self, what: str) -> None:
        """Count a step that the engine left out. Raises TrialFailed where there were too many."""
        self.skipped += 1
        if self.skipped > (most := self.config.training.max_skipped_steps):
            raise TrialFailed(f"{what}, after skipping {most}." if most else f"{what}.")

    def _batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        samples = self.order.at(step)
        budget = self.config.training.micro_batch_tokens
        dealt = deal(self.data.lengths[samples], budget, self.ranks.world, padded=not self.collate.packed)
        return [
            self.collate([self.data.sample(int(i)) for i in samples[micro_batch]])
            for micro_batch in dealt[self.ranks.rank]
        ]

    def _objective(self, step: int, batches: list[Batch]) -> AnyObjective:
        """The objective of this step, which may depend on the training's progress or on the step's own samples."""
        nll = self._sample_nll(batches) if self.objective.needs_sample_nll else None
        if self.mean_probability is None:
            return cast(AnyObjective, self.objective.at(step / self.steps, nll))
        return cast(AnyObjective, self.objective.at(step / self.steps, nll, self.mean_probability))

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        with self.clock("communication"):
            return self.ranks.sum(values)

    @torch.no_grad()
    def _sample_nll(self, batches: list[Batch]) -> torch.Tensor:
        """Mean -log p of each sample of the step on all ranks, under the current model: [samples]. Collective."""
        mine = []
        for batch in batches:
            logp = self.engine.forward(batch, Power())[3].double().cpu()  # 0 where nothing is supervised
            sample = batch.sample_ids()[:, 1:].flatten()
            supervised = (batch.labels[:, 1:] != IGNORE_INDEX).flatten().double()
            mine += (-sample.bincount(logp) / sample.bincount(supervised)).tolist()
        return torch.tensor([nll for part in self.ranks.gather(mine) for nll in part])

    @torch.no_grad()
    def _kept_ahead(self, batches: list[Batch], objective: AnyObjective) -> float:
        """Kept tokens of the whole step, which several micro-batches need before the first gradient."""
        kept = sum(self.engine.forward(batch, objective)[2].double().cpu() for batch in batches)
        return float(self.ranks.sum(torch.as_tensor(kept)))

    def _evaluate(self, hooks: Hooks) -> Metrics:
        self.engine.train(False)
        with self.clock("evaluation"):
            metrics = hooks.evaluate()
        self.engine.train(True)
        return metrics

    def _save(self, step: int, keep: int) -> None:
        self.log.flush()
        with self.clock("checkpoint"):
            checkpoint.save(self.store.below("checkpoints"), step, self.identity, self.ranks, self._write_state, keep)

    def _write_state(self, folder: Path) -> None:
        """This rank's files of a checkpoint."""
        self.engine.save(folder)
        if self.ranks.rank == 0:
            state = {"mean_probability": self.mean_probability, "skipped": self.skipped}
            (folder / STATE).write_text(json.dumps(state))

    def _resume(self) -> int:
        found = checkpoint.latest(self.store.below("checkpoints"), self.identity, self.ranks)
        if found:
            with self.clock("checkpoint"):
                self._load(found)
            state = json.loads((found.folder / STATE).read_text())
            self.mean_probability, self.skipped = state["mean_probability"], state["skipped"]
        step = found.step if found else 0
        self.log.cut(step)
        return step

    def _load(self, found: checkpoint.Checkpoint) -> None:
        try:
            self.engine.load(found.folder, found.world)
        except UnpicklingError as error:
            if self.ranks.world > 1:  # the others wait for this rank: the group has to break
                raise
            lines = str(error).splitlines() or [""]  # torch first tells at length how to load it all the same
            reason = next((line.strip() for line in lines if "Unpickler error" in line), lines[0]).split(" Please")[0]
            raise TrialFailed(
                f"{found.folder} holds something else than a checkpoint and was not loaded: {reason}"
            ) from None


def peak_memory() -> float:
    """GiB that this worker has held at most since it started: on its GPU, or without one in all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def _sums(output: HeadOutput) -> torch.Tensor:
    """[loss_sum, kept, sum of p over supervised tokens] in float64 on the CPU."""
    loss_sum, supervised, kept, logp = output
    skipped = logp.numel() - supervised  # their logp is 0, so each would add 1
    probability = logp.double().exp().sum() - skipped
    return torch.stack([loss_sum.detach().double(), kept.double(), probability]).cpu()


class MetricLog:
    """Rank 0's JSON lines of metrics, one a logged step: the trial's own record, mirrored to tracking by others."""

    def __init__(self, store: Store, ranks: Ranks) -> None:
        """store: of the trial."""
        self.store, self.path, self.writes = store, store.folder / "metrics.jsonl", ranks.rank == 0
        self.pending: list[str] = []

    def add(self, step: int, metrics: Metrics) -> None:
        self.pending.append(json.dumps({"step": step, "time": time.time(), **metrics}))

    def flush(self) -> None:
        if self.writes and self.pending:
            append(self.path, "".join(line + "\n" for line in self.pending))
            self.store.push(self.path)
        self.pending.clear()

    def at(self, step: int) -> Metrics:
        """What was logged at a step; nothing on the other ranks."""
        if not self.writes:
            return {}
        line = next(line for line in self.path.read_text().splitlines() if _step_of(line) == step)
        return {name: value for name, value in json.loads(line).items() if name not in ("step", "time")}

    def cut(self, step: int) -> None:
        """Forget what came after `step`: it will be done again."""
        if self.writes and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines(True) if _step_of(line) <= step]
            self.store.publish(self.path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # a line that a kill cut short
        return math.inf
