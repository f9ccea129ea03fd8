"""One trial from its config to its result, inside a group of workers (or one plain process).

`Bench` is what belongs to a group: base weights, tokenizer, tokenised data. A trial's own things (objective,
optimizer state, step, checkpoints) live only while `run` does, so that a group runs one trial after another.
"""

import gc
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel

from raysft.backbone import collate, load_model, load_tokenizer, pack
from raysft.capability import Capability
from raysft.config import TRIAL_SECTIONS, Job, SweepConfig, TrialConfig, config_hash, total_steps
from raysft.data.problems import Part, part_of
from raysft.data.tokenized import split
from raysft.errors import InputError, TrialFailed
from raysft.evaluation import Problems, evaluate, load_problems, write_records
from raysft.evaluation.decoding import why_not
from raysft.probe import probe
from raysft.ranks import Ranks
from raysft.training.clock import Clock
from raysft.training.engine import Engine, PlainEngine
from raysft.training.flops import Flops
from raysft.training.lanes import LaneEngine, Lanes, why_in_turn
from raysft.training.loop import Hooks, Loop, Metrics, Stop
from raysft.training.model import Model, SFTModel, merged, trainable_model


@dataclass(frozen=True)
class TrialResult:
    """paused: at the job's `until`, its checkpoint saved."""

    status: Literal["finished", "dropped", "saved", "paused"]
    step: int
    metrics: Metrics


RESULT = "result.json"
WITHOUT_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "could not create a primitive",
)
OUT_OF_MEMORY = ("out_of_memory", "out_of_memory_again")  # empty files in a trial's folder
STATUS: dict[str, Literal["dropped", "saved", "paused"]] = {"drop": "dropped", "save": "saved", "pause": "paused"}


def part_asked(config: SweepConfig, trial: TrialConfig) -> Part:
    """The problems that a trial is judged on."""
    if config.confirm is None or trial.role == "train":
        return "all"
    return "report" if trial.role == "confirm" else "search"


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the machine; the libraries of their products have words of their own for it."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in WITHOUT_MEMORY)


class Bench:
    def __init__(
        self, config: SweepConfig, engine: Literal["plain", "zero"], ranks: Ranks, device: torch.device
    ) -> None:
        """config: a study's (made by for_backbone). Collective; raises InputError for what cannot be read."""
        self.config, self.ranks, self.device = config, ranks, device
        self.lanes = Lanes() if config.workers.lanes > 1 else None
        self.engine_kind = "lanes" if self.lanes else engine
        self.tokenizer = load_tokenizer(config.backbone)
        self.train, self.heldout = split(config.data, self.tokenizer, config.output / "cache")
        self.base = load_model(config.backbone, config.training.precision)
        problems = load_problems(self.base, self.tokenizer, self.heldout, config)  # refused now if not scorable later
        self._check_parts(problems)
        self.tasks = {f"task {p.name}": p.fingerprint for p in problems if p.name in config.evaluation.tasks}
        self.steps = total_steps(config.training, len(self.train))
        self.padded_because, self.slow_because = self._try_model()
        self.collate = collate(self.base, self.tokenizer)
        if self.lanes:
            self._check_lanes()
        self._check_vocabulary()
        self._agree("the configuration and data", config_hash(config, self._data_identity()))

    def _try_model(self) -> tuple[str | None, str | None]:
        """Why samples are padded, and completions not written by our own decoding; None: they are not, and they are.

        Tried where the model will run: a GPU has attention of its own.
        """
        model = self.base.to(self.device)  # type: ignore[arg-type]
        padded_because = pack(model) if self.config.training.packing else None
        evaluation = self.config.evaluation
        slow_because = why_not(model) if evaluation.generation or evaluation.tasks else None
        self.base.to("cpu")  # type: ignore[arg-type]
        return padded_because, slow_because

    def _check_parts(self, problems: list[Problems]) -> None:
        """Raises InputError where the search or the report is left without problems or held-out samples."""
        if (confirm := self.config.confirm) is None:
            return
        parts: tuple[Part, ...] = ("search", "report")
        for part in parts:
            for asked in problems:
                asked.of_part(part, confirm.share)
            if not part_of(range(len(self.heldout)), part, confirm.share):
                reason = f"share {confirm.share:g} leaves none of {len(self.heldout)} held-out samples to the {part}."
                raise InputError("confirm", reason, "Change confirm.share, or hold out more samples.")

    def _check_lanes(self) -> None:
        """Raises InputError for a backbone whose trials cannot train side by side; leaves it where they will."""
        base = self.base.to(self.device)  # type: ignore[arg-type]
        if (reason := self.padded_because or why_in_turn(base, self.config.training)) is not None:
            raise InputError(
                f"backbone '{self.config.backbone.name}' ({self.config.backbone.path})",
                f"its trials cannot train side by side in {self.config.workers.lanes} lanes: {reason}.",
                "Set workers.lanes to 1, for this backbone alone in its overrides.",
            )

    def probe(self) -> Capability:
        """The base model's capability on the training data. Collective."""
        model = self.base.to(self.device)  # type: ignore[arg-type]
        budget = self.config.training.micro_batch_tokens
        capability = probe(model, self.train, self.config.probe.samples, budget, self.collate, self.ranks, self.device)
        self._put_away()
        return capability

    def _put_away(self) -> None:
        """The base leaves the device between trials, unless they train on these very weights."""
        if self.lanes is None:
            self.base.to("cpu")  # type: ignore[arg-type]

    def warm_up(self) -> None:
        """Import now what the first trial would wait for."""
        if self.engine_kind == "zero":
            import raysft.training.zero  # noqa: F401

    def data_facts(self) -> dict[str, dict[str, Any]]:
        """Fingerprint and counts of the training and held-out data."""
        parts = {"train": self.train, "heldout": self.heldout}
        return {name: {"fingerprint": part.fingerprint, "counts": part.counts} for name, part in parts.items()}

    def notes(self) -> list[str]:
        """What the user should know before the first trial."""
        name = type(self.base).__name__
        parts = {"training data": self.train, "held-out data": self.heldout}
        notes = [f"{part}: {told}" for part, data in parts.items() if (told := data.left_out()) is not None]
        if self.padded_because is not None:
            notes.append(
                f"samples are padded and not packed, which takes longer: {name} cannot keep them apart in one row "
                f"({self.padded_because})"
            )
        if self.slow_because is not None:
            notes.append(
                f"completions are written by transformers' own generate, which takes longer: raysft's does not fit "
                f"{name} ({self.slow_because})"
            )
        return notes

    def run(
        self,
        job: Job,
        report: Callable[[int, Metrics], None] = lambda step, metrics: None,
        stop: Callable[[], Stop | None] = lambda: None,
        export: Callable[[Metrics], bool] = lambda metrics: False,
    ) -> TrialResult:
        """Train, evaluate and record one trial, resuming where it left off. Collective; hooks run on rank 0.

        export(metrics) decides after training whether the model is kept. Raises TrialFailed for a trial that cannot
        go on; the bench stays usable. With lanes, several threads may call it at once.

        A trial that runs out of memory goes on from its last checkpoint with half as many tokens in a micro-batch,
        once: here where this is the only worker, else when its group has started again, since others wait for this one.
        """
        while True:
            times = self._out_of_memory(job)
            config = self._within_memory(times)
            try:
                with self.lanes.turn() if self.lanes else nullcontext():
                    return self._run(config, job, report, stop, export)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                job.store.publish(job.folder / OUT_OF_MEMORY[times], "")
                if self.ranks.world > 1:
                    raise
            gc.collect()  # what the error held
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _out_of_memory(self, job: Job) -> int:
        """How often the trial ran out of memory. Raises TrialFailed where that was twice. Collective."""
        if self.ranks.rank == 0:
            job.store.pull(job.folder, but=("checkpoints", "model"))
        marks = [job.folder / name for name in OUT_OF_MEMORY]
        times: int = self.ranks.broadcast(sum(mark.exists() for mark in marks))
        if times == len(marks):
            for mark in marks if self.ranks.rank == 0 else []:  # whoever resumes it may have mended the cause
                job.store.remove(mark)
            tokens = self.config.training.micro_batch_tokens
            raise TrialFailed(
                f"memory ran out with training.micro_batch_tokens {tokens}, and again with {tokens // 2}: lower it, "
                "shard more (zero.stage, zero.offload), or set training.gradient_checkpointing."
            )
        return times

    def _within_memory(self, times: int) -> SweepConfig:
        """The config of a trial that ran out of memory so often."""
        if times == 0:
            return self.config
        tokens = self.config.training.micro_batch_tokens
        training = self.config.training.model_copy(update={"micro_batch_tokens": max(1, tokens // 2)})
        return self.config.model_copy(update={"training": training})

    def _run(
        self,
        config: SweepConfig,
        job: Job,
        report: Callable[[int, Metrics], None],
        stop: Callable[[], Stop | None],
        export: Callable[[Metrics], bool],
    ) -> TrialResult:
        if done := self._finished(job):
            return done
        identity = {
            "config": config_hash(self.config.model_dump(mode="json", include=TRIAL_SECTIONS), job.trial),
            "data": self._data_identity(),
            "engine": self.engine_kind,
        }
        self._agree("the trial", config_hash(identity))
        if self.ranks.rank == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            if not (record := job.folder / "trial.json").exists():  # a sweep's driver writes its own
                job.store.publish(record, job.trial.model_dump_json(indent=1))
        self.ranks.barrier()
        torch.manual_seed(job.trial.seed)  # LoRA's initial weights
        clock = Clock(on_gpu=self.device.type == "cuda")
        with clock("start"):
            engine, flops = self._start(job.trial, clock)
        try:
            loop = Loop(
                config, job.trial, engine, self.train, self.ranks, job.store, identity, self.collate, self.steps,
                clock, flops,
            )  # fmt: skip
            hooks = Hooks(lambda: self._evaluate(config, engine, job), report, stop)
            outcome = loop.run(hooks, job.until)
            if outcome.stopped:
                return TrialResult(STATUS[outcome.stopped], outcome.step, outcome.metrics)
            if self.ranks.broadcast(self.ranks.rank == 0 and export(outcome.metrics)):
                self._export(engine, job)
            return self._finish(job, TrialResult("finished", outcome.step, outcome.metrics))
        finally:
            engine.close()
            self._put_away()

    def _start(self, trial: TrialConfig, clock: Clock) -> tuple[Engine, Flops]:
        """The engine alone holds the trial's model, so that it is gone once the engine is closed."""
        model = self._fresh_model()
        flops = Flops(model)  # before it is sharded
        return self._engine(SFTModel(model, self._frozen_base(trial), clock)), flops

    def _engine(self, model: SFTModel) -> Engine:
        if self.lanes:
            return LaneEngine(model, self.config.training, self.device, self.lanes)
        if self.engine_kind == "plain":
            return PlainEngine(model, self.config.training, self.device)
        from raysft.training.zero import ZeroEngine  # imports deepspeed, which the plain loop does without

        return ZeroEngine(model, self.config, self.ranks, self._fresh_model)

    def _frozen_base(self, trial: TrialConfig) -> PreTrainedModel | None:
        """The base model beside the trained one, where the objective needs it; adapters can be switched off instead."""
        if not trial.objective.needs_reference or self.config.training.lora is not None:
            return None
        return self.base.to(self.device)  # type: ignore[arg-type]

    def _fresh_model(self) -> Model:
        return trainable_model(self.base, self.config.training, shared=self.lanes is not None)

    def _evaluate(self, config: SweepConfig, engine: Engine, job: Job) -> Metrics:
        model = engine.full_model()
        part = part_asked(config, job.trial)
        seed = job.trial.seed
        evaluation = evaluate(model, self.tokenizer, self.heldout, config, self.ranks, self.device, seed, part=part)
        if self.ranks.rank == 0 and evaluation.records:
            write_records(evaluation.records, job.folder / "completions.jsonl.gz")
            job.store.push(job.folder / "completions.jsonl.gz")
        return evaluation.metrics

    def _export(self, engine: Engine, job: Job) -> None:
        model = engine.full_model()
        if self.ranks.rank == 0:
            folder = job.folder / "model"
            temporary = folder.with_name(f".{folder.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            whole = merged(self._unshared(model) if self.lanes else model)
            whole.config.use_cache = True
            whole.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            job.store.remove(folder)
            temporary.rename(folder)
            job.store.push(folder)
        self.ranks.barrier()

    def _unshared(self, model: Model) -> Model:
        """A copy of a lane's model with base weights of its own, which can be merged into."""
        own = trainable_model(self.base, self.config.training)
        own.load_state_dict(model.state_dict())
        return own

    def _finish(self, job: Job, result: TrialResult) -> TrialResult:
        """Publish the result; the checkpoints have served."""
        if self.ranks.rank == 0:
            job.store.publish(job.folder / RESULT, json.dumps({"step": result.step, "metrics": result.metrics}))
            job.store.remove(job.folder / "checkpoints")
        self.ranks.barrier()
        return result

    def _finished(self, job: Job) -> TrialResult | None:
        """The result of a trial that had ended before its end was heard of."""
        path = job.folder / RESULT
        found = json.loads(path.read_text()) if self.ranks.rank == 0 and path.exists() else None
        found = self.ranks.broadcast(found)
        return TrialResult("finished", found["step"], found["metrics"]) if found else None

    def _data_identity(self) -> dict[str, str]:
        return {"train": self.train.fingerprint, "heldout": self.heldout.fingerprint, **self.tasks}

    def _check_vocabulary(self) -> None:
        """Raises InputError for a token that the model has no embedding for. Tokens that are not used may lack one."""
        embeddings = cast(torch.nn.Embedding, self.base.get_input_embeddings())
        rows = embeddings.num_embeddings
        if max(self.tokenizer.get_vocab().values()) < rows:
            return
        parts = (self.train, self.heldout)
        highest = max(self.collate.pad_id, *(int(part.sample(i)[0].max()) for part in parts for i in range(len(part))))
        if highest >= rows:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise InputError(
                f"backbone '{self.config.backbone.name}' ({self.config.backbone.path})",
                f"its tokenizer writes token {highest} ({token!r}), but the model has embeddings for {rows}.",
                "Save the model with an embedding for every token (resize_token_embeddings), or its own tokenizer.",
            )

    def _agree(self, what: str, value: str) -> None:
        values = self.ranks.gather(value)
        if len(set(values)) > 1:
            raise TrialFailed(f"the workers do not agree on {what}: {values}. Are all nodes of one version?")
