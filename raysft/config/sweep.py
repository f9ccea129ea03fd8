"""The sweep file as a whole, its backbones and data, and what a trial and a job hold."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from raysft.config.evaluation import EvaluationConfig, Template
from raysft.config.grid import LARGEST, points, size, unlisted
from raysft.config.search import ConfirmConfig, ProbeConfig, SearchConfig, TrackingConfig
from raysft.config.source import Revision, Source
from raysft.config.space import PAPER_BASELINES, AnyObjective, SpaceConfig
from raysft.config.training import TrainingConfig, WorkersConfig, ZeroConfig
from raysft.errors import did_you_mean
from raysft.objectives.base import Probability
from raysft.store import Store
from raysft.strict import Name, Strict

# --- backbones and data ---------------------------------------------------------------------------------------------


class BackboneConfig(Strict):
    name: Name
    path: str = Field(min_length=1, description="Hugging Face hub id, or a folder with safetensors weights")
    revision: Revision | None = Field(default=None, description="hub commit, branch or tag")
    trust_remote_code: bool = Field(default=False, description="needs a commit hash as revision")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="sections of this file that differ here, e.g. training: {learning_rate: 2e-5}"
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "trust_remote_code runs code from the hub: pin a revision with it, the 40 digits of a commit, because "
                "a branch or tag can move to other code"
            )
        return self


class DataConfig(Strict):
    train: Source
    heldout: Source | None = Field(default=None, description="null: heldout_samples are split off the training data")
    prompt: str = Field(default="prompt", description="field with the prompt")
    response: str = Field(default="response", description="field with the response")
    messages: str | None = Field(default=None, description="field with chat messages, instead of prompt and response")
    system: str | None = Field(default=None, description="system message put before each sample that has none")
    prompt_suffix: str = Field(default="", description="text appended to each user prompt")
    template: Template = Field(
        default="chat",
        description="chat: the tokenizer's own; plain: prompt, response, end token; the rest: the paper's",
    )
    max_length: int = Field(default=1024, gt=1, description="tokens; a sample whose response is cut away is dropped")
    max_dropped: Probability = Field(
        default=0.5, description="share of dropped samples above which the data are refused"
    )
    max_bad: Probability = Field(
        default=0.0,
        description="share of samples that cannot be read, up to which they are left out and listed; "
        "0: the first one is refused",
    )
    train_samples: int | None = Field(default=None, gt=0, description="at most so many, drawn with the seed")
    heldout_samples: int = Field(default=256, gt=0, description="at most so many")
    seed: int = Field(default=0, ge=0)


# --- the sweep ------------------------------------------------------------------------------------------------------

# What decides what a trial computes, and what a study tries. The rest, such as the output's place, the tracking or the
# number of workers at once, may change when a sweep is resumed.
TRIAL_SECTIONS: dict[str, Any] = {
    **dict.fromkeys(("seed", "backbones", "data", "training", "zero", "evaluation"), True),
    "confirm": {"share"},
}
STUDY_SECTIONS = TRIAL_SECTIONS | dict.fromkeys(("space", "baselines", "search", "probe"), True)
OVERRIDABLE = ("data", "space", "training", "zero", "workers", "evaluation", "probe")


BUCKET = re.compile(r"(s3|gs)://[A-Za-z0-9][\w.-]*(/[\w.-]+)*/?")


class SweepConfig(Strict):
    name: Name
    output: Path = Field(
        default=Path("runs"), description="folder that all machines see, or, with storage, one on each"
    )
    storage: str | None = Field(
        default=None,
        description="bucket and folder in it, such as s3://bucket/runs, that keep what is written to output",
    )
    seed: int = Field(default=0, ge=0, description="of training, evaluation and the order of the data")
    backbones: Annotated[list[BackboneConfig], Field(min_length=1)]
    data: DataConfig
    space: SpaceConfig = SpaceConfig()
    baselines: list[AnyObjective] = Field(default=[], description="run besides the paper's four, which always run")
    training: TrainingConfig = TrainingConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probe: ProbeConfig = ProbeConfig()
    search: SearchConfig = SearchConfig()
    confirm: ConfirmConfig | None = Field(default=None, description="null: the search's own numbers are all there is")
    tracking: TrackingConfig = TrackingConfig()
    export: Literal["best", "all", "none"] = Field(default="best", description="trained models kept as folders")

    @field_validator("output")
    @classmethod
    def _no_bucket(cls, output: Path) -> Path:
        if output.parts[:1] in (("s3:",), ("gs:",)):
            raise ValueError("is an address in a bucket: set storage to it; output is a folder on each machine then")
        return output

    @field_validator("storage")
    @classmethod
    def _bucket(cls, storage: str | None) -> str | None:
        if storage is not None and not BUCKET.fullmatch(storage):
            raise ValueError(
                f"'{storage}' is no address in a bucket: write s3://BUCKET/FOLDER (or gs://), without keys or "
                "options, which belong into the environment; a folder that all machines see is named by output"
            )
        return storage

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [b.name for b in self.backbones]
        if duplicate := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two backbones are named '{duplicate}': give each a name of its own")
        size, count = self.training.global_batch_size, self.workers.count
        if size % count:
            raise ValueError(f"training.global_batch_size ({size}) must be a multiple of workers.count ({count})")
        if self.workers.lanes > 1 and (needed := self._missing_for_lanes()):
            raise ValueError(f"workers.lanes above 1 needs {needed}; or set workers.lanes to 1")
        if self.tracking.register_as and self.export == "none":
            raise ValueError("tracking.register_as needs a model that is kept: set export to best or all")
        if self.search.sampler == "grid":
            self._listed()
        evaluation, task = self.evaluation, self.search.task
        if self.search.metric == "eval/accuracy" and not (evaluation.generation or evaluation.tasks):
            needs = "needs evaluation.generation or evaluation.tasks"
            raise ValueError(f"search.metric eval/accuracy {needs}; or search for eval/nll")
        if task is not None and task not in evaluation.tasks:
            near = did_you_mean(task, list(evaluation.tasks)) if evaluation.tasks else "None is named there."
            raise ValueError(f"search.metric {self.search.metric}: '{task}' is not in evaluation.tasks. {near}")
        if self.search.asha and not self.evaluation.every:
            raise ValueError("search.asha needs evaluation.every: it compares held-out metrics during training")
        if self.search.asha and self.evaluation.every:
            grace, every = self.search.asha.grace_period, self.evaluation.every
            if rest := grace % every:
                raise ValueError(
                    f"search.asha.grace_period ({grace}) must be a multiple of evaluation.every ({every}), because "
                    f"trials are compared where they are evaluated: set it to {grace - rest + every}"
                )
        generation = evaluation.generation
        if generation and generation.scorer == "reasoning_gym":
            heldout = self.data.heldout or self.data.train
            if heldout.kind != "reasoning_gym":
                raise ValueError("the scorer reasoning_gym needs held-out data of kind reasoning_gym")
        return self

    def _listed(self) -> None:
        """Raises ValueError for a space that no grid goes through."""
        if key := unlisted(self.space):
            raise ValueError(f"search.sampler grid needs values, but space.{key} is a range: list them, or give a step")
        if (count := size(self.space)) > LARGEST:
            raise ValueError(f"search.sampler grid: the space has {count:,} points, more than {LARGEST:,}: list fewer")

    def _missing_for_lanes(self) -> str | None:
        """What keeps trials from training side by side. Dropout would draw other numbers than in a trial alone."""
        lora = self.training.lora
        conditions = {
            "training.lora: only adapters can share a base model": lora is not None,
            "training.lora.dropout 0": lora is None or lora.dropout == 0,
            "training.packing": self.training.packing,
            "workers.count 1": self.workers.count == 1,
            "workers.reuse": self.workers.reuse,
            "zero.offload none": self.zero.offload == "none",
        }
        return next((needed for needed, met in conditions.items() if not met), None)

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def store(self) -> Store:
        """Of the sweep's folder."""
        return Store(self.output, self.storage).below(self.name)

    def all_baselines(self) -> list[AnyObjective]:
        """The paper's four and the file's own, each once."""
        return list(dict.fromkeys([*PAPER_BASELINES, *self.baselines]))

    def grid(self) -> "list[TrialConfig] | None":
        """All points of the space in their order, but those that the baselines are already; None: another sampler."""
        if self.search.sampler != "grid":
            return None
        rate, run = self.training.learning_rate, self.all_baselines()
        trials = [
            TrialConfig(objective=objective, learning_rate=own or rate, seed=self.seed)
            for objective, own in points(self.space)
        ]
        return [trial for trial in trials if trial.objective not in run or trial.learning_rate != rate]

    @property
    def searched(self) -> int:
        """How many trials of one backbone are searched."""
        grid, trials = self.grid(), self.search.trials
        if grid is not None:
            return len(grid[:trials])
        assert trials is not None
        return trials

    def for_backbone(self, name: str) -> "SweepConfig":
        """This file as one backbone sees it: only that backbone, its overrides merged in."""
        backbone = next(b for b in self.backbones if b.name == name)
        values = self.model_dump(mode="json")
        for section, override in backbone.overrides.items():
            values[section] = merge(values[section], override)
        values["backbones"] = [backbone.model_dump(mode="json") | {"overrides": {}}]
        return SweepConfig.model_validate(values)

    @property
    def backbone(self) -> BackboneConfig:
        """The only backbone of a config made by `for_backbone`."""
        (backbone,) = self.backbones
        return backbone


class TrialConfig(Strict):
    """What one trial changes: everything else is its study's."""

    objective: AnyObjective
    learning_rate: float = Field(gt=0)
    seed: int = Field(ge=0)
    role: Literal["baseline", "search", "train", "confirm"] = "search"
    quantile: Probability | None = Field(default=None, description="of the base model's p that gave the threshold")
    upper_quantile: Probability | None = Field(default=None, description="the same of the objective's upper")

    def name(self) -> str:
        """A name for a folder, e.g. `power-a1-above0.2-lr5e-05-seed0`."""
        return f"{self.objective.slug()}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Job:
    """A trial as it is handed to a group of workers. Its objective's threshold is already a probability.

    until: completed steps after which it saves and hands its group back; None: it runs to its end. uri: of the place in
    a bucket that keeps the folder, if one does.
    """

    trial_id: str
    trial: TrialConfig
    folder: Path
    until: int | None = None
    uri: str | None = None

    @property
    def store(self) -> Store:
        return Store(self.folder, self.uri)


def merge(base: Any, override: Any) -> Any:
    """The base, replaced key by key; a data source of another kind shares no keys with it."""
    if not merges(base, override):
        return override
    return base | {key: merge(base.get(key), value) for key, value in override.items()}


def merges(base: Any, override: Any) -> bool:
    """Whether an override leaves what it does not name of the base."""
    both = isinstance(base, dict) and isinstance(override, dict)
    return both and override.get("kind", base.get("kind")) == base.get("kind")


def config_hash(*configs: BaseModel | dict[str, Any]) -> str:
    """A short hash that differs whenever any value of the configs differs."""
    plain = [c.model_dump(mode="json") if isinstance(c, BaseModel) else c for c in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
