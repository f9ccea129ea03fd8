"""The sweep file as typed models. Imports neither torch nor ray, so that a file is checked in an instant.

Every model forbids unknown keys and is immutable; `raysft.sweepfile` reads YAML into them and words the errors.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    FiniteFloat,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from raysft.objectives.base import Keep, Probability, Selection, ThresholdUnit
from raysft.objectives.power import Power
from raysft.objectives.registry import known, name_of
from raysft.refusal import refusals
from raysft.strict import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


# --- objectives -----------------------------------------------------------------------------------------------------


def _power_unless_named(value: Any) -> Any:
    return {"type": "power", **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    AnyObjective = Selection
else:
    _Tagged = Annotated[Union[tuple(known().values())], Field(discriminator="type")]  # noqa: UP007
    AnyObjective = Annotated[_Tagged, BeforeValidator(_power_unless_named)]

PAPER_BASELINES = (
    Power(exponent=0),
    Power(exponent=1),
    Power(exponent=10),
    Power(exponent=0, threshold=0.2),
)


class Range(Strict):
    """An interval that the sampler draws from."""

    low: FiniteFloat
    high: FiniteFloat
    log: bool = Field(default=False, description="draw uniformly in the logarithm")
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs low > 0; list the values instead, or drop log")
        if self.log and self.step is not None:
            raise ValueError("step and log exclude each other")
        return self

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


Choices = Annotated[list[FiniteFloat], Field(min_length=1)]
Dimension = Range | Choices | FiniteFloat


def bounds(dimension: Dimension) -> tuple[float, float]:
    """Smallest and largest value of a dimension."""
    if isinstance(dimension, Range):
        return dimension.bounds()
    values = dimension if isinstance(dimension, list) else [dimension]
    return min(values), max(values)


def _searched(annotation: Any) -> Any:
    """What the space may hold for a parameter: a range, a list of values or a value; no range but of real numbers."""
    if get_origin(annotation) is Annotated:
        return _searched(get_args(annotation)[0])
    members = [m for m in get_args(annotation) if m is not type(None)] if type(None) in get_args(annotation) else []
    if members:
        return _searched(members[0]) | None
    return Dimension if annotation is float else annotation | Annotated[list[annotation], Field(min_length=1)]


def _family(cls: type[Selection]) -> type[Strict]:
    """An objective's own parameters as dimensions of the search."""
    fields: dict[str, Any] = {"type": (Literal[name_of(cls)], Field(default=name_of(cls)))}
    for name, field in cls.model_fields.items():
        if name not in Selection.model_fields:
            default = ... if field.is_required() else field.default
            fields[name] = (_searched(field.annotation), Field(default=default, description=field.description))
    if cls is Power:
        fields["exponent"] = (Dimension | None, Field(default=None, description="null: that of the space"))
    return create_model(f"{cls.__name__}Space", __base__=Strict, __module__=__name__, **fields)


FAMILIES = {name: _family(cls) for name, cls in known().items()}
globals().update({family.__name__: family for family in FAMILIES.values()})  # where pickle, and so Ray, looks for them
if TYPE_CHECKING:
    AnyFamily = Any
else:
    AnyFamily = Annotated[Union[tuple(FAMILIES.values())], Field(discriminator="type")]  # noqa: UP007


class SpaceConfig(Strict):
    """What the search may choose. A threshold's value and side are asked for only where a trial has a threshold."""

    exponent: Dimension = Field(default=Range(low=0, high=10), description="of power, where it is searched")
    objectives: Annotated[list[AnyFamily], Field(min_length=1)] = Field(
        default=[FAMILIES["power"]()], description="families to choose from, each with ranges of its own parameters"
    )
    threshold: Dimension | None = Field(default=None, description="null: no trial of the search has a threshold")
    threshold_optional: bool = Field(default=True, description="a trial first chooses whether to have a threshold")
    threshold_unit: ThresholdUnit = "probability"
    upper: Dimension | None = Field(default=None, description="bound above of what a threshold keeps; null: none")
    keep: Annotated[list[Keep], Field(min_length=1)] = Field(default=["above"])
    learning_rate: Dimension | None = Field(default=None, description="null: the training section's for every trial")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.threshold is not None and not (bounds(self.threshold)[0] >= 0 and bounds(self.threshold)[1] <= 1):
            raise ValueError("thresholds lie between 0 and 1")
        if self.upper is not None:
            if self.threshold is None or self.keep != ["above"]:
                raise ValueError("upper bounds what a threshold keeps above itself: set threshold, and keep to [above]")
            if not bounds(self.threshold)[1] <= bounds(self.upper)[0] or bounds(self.upper)[1] > 1:
                raise ValueError("upper lies between the largest threshold and 1")
        if self.learning_rate is not None and bounds(self.learning_rate)[0] <= 0:
            raise ValueError("learning rates are above 0")
        names = [family.type for family in self.objectives]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"objectives has '{duplicate}' twice: give it one entry, with ranges or lists of values")
        for family in self.objectives:
            self._corners(family.type)
        return self

    def _corners(self, name: str) -> None:
        """Raises ValueError unless the objective takes the smallest and the largest value of each dimension."""
        dimensions = self.dimensions(name)
        for side in (0, -1):
            values = {key: _corner(dimension, side) for key, dimension in dimensions.items()}
            try:
                known()[name].model_validate(values)
            except ValidationError as error:
                refusal = refusals(known()[name], error)[0]
                key = ".".join([name, *map(str, refusal.loc)])
                raise ValueError(f"objectives: {key}: {refusal.reason}") from None

    def dimensions(self, name: str) -> dict[str, Any]:
        """Of an objective among `objectives`: its own parameters, each a range, a list of values or a value."""
        family = next(f for f in self.objectives if f.type == name)
        own = {key: getattr(family, key) for key in type(family).model_fields if key != "type"}
        if name == "power" and own["exponent"] is None:
            own["exponent"] = self.exponent
        return own


def _corner(dimension: Any, side: int) -> Any:
    if isinstance(dimension, Range):
        return dimension.bounds()[side]
    return dimension[side] if isinstance(dimension, list) else dimension


# --- backbones and data ---------------------------------------------------------------------------------------------


class BackboneConfig(Strict):
    name: Name
    path: str = Field(min_length=1, description="Hugging Face hub id, or a folder with safetensors weights")
    revision: str | None = Field(default=None, description="hub commit, branch or tag")
    trust_remote_code: bool = Field(default=False, description="needs a pinned revision")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="sections of this file that differ here, e.g. training: {learning_rate: 2e-5}"
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code runs code from the hub: pin a revision with it")
        return self


class FileSource(Strict):
    """Local JSONL, JSON (a list of objects) or Parquet, told by the ending."""

    kind: Literal["file"] = "file"
    path: Path

    @field_validator("path")
    @classmethod
    def _known_ending(cls, path: Path) -> Path:
        if path.suffix.lower() not in (".jsonl", ".json", ".parquet"):
            raise ValueError(f"'{path}' must end in .jsonl, .json or .parquet")
        return path


class HubSource(Strict):
    """A Hugging Face data set, by hub id or by folder."""

    kind: Literal["hub"] = "hub"
    path: str = Field(min_length=1)
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class ReasoningGymSource(Strict):
    """A procedurally generated task of the reasoning-gym package."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(min_length=1)
    size: int = Field(gt=0)
    seed: int = Field(default=42, ge=0)
    params: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[FileSource | HubSource | ReasoningGymSource, Field(discriminator="kind")]


class DataConfig(Strict):
    train: Source
    heldout: Source | None = Field(default=None, description="null: heldout_samples are split off the training data")
    prompt: str = Field(default="prompt", description="field with the prompt")
    response: str = Field(default="response", description="field with the response")
    messages: str | None = Field(default=None, description="field with chat messages, instead of prompt and response")
    system: str | None = Field(default=None, description="system message put before each sample that has none")
    prompt_suffix: str = Field(default="", description="text appended to each user prompt")
    template: Literal["chat", "qwen", "llama3", "deepseek", "plain"] = Field(
        default="chat",
        description="chat: the tokenizer's own; plain: prompt, response, end token; the rest: the paper's",
    )
    max_length: int = Field(default=1024, gt=1, description="tokens; a sample whose response is cut away is dropped")
    max_dropped: Probability = Field(
        default=0.5, description="share of dropped samples above which the data are refused"
    )
    train_samples: int | None = Field(default=None, gt=0, description="at most so many, drawn with the seed")
    heldout_samples: int = Field(default=256, gt=0, description="at most so many")
    seed: int = Field(default=0, ge=0)


# --- training -------------------------------------------------------------------------------------------------------


class LoraConfig(Strict):
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainingConfig(Strict):
    """Defaults are the paper's recipe (arXiv 2510.00526, appendix)."""

    steps: int | None = Field(default=None, gt=0, description="optimizer steps; null: epochs decide")
    epochs: float = Field(default=1.0, gt=0)
    global_batch_size: int = Field(default=256, gt=0, description="samples an optimizer step, over all workers")
    micro_batch_tokens: int = Field(
        default=4096, gt=0, description="tokens of a forward pass of one worker; a longer sample goes alone"
    )
    packing: bool = Field(
        default=True, description="samples one behind the other, without padding; false: padded to the longest"
    )
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=5e-5, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Probability = 0.1
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    lora: LoraConfig | None = None
    normalize: Literal["supervised", "kept"] = Field(
        default="supervised",
        description="tokens that the summed loss is divided by: Eq. 4, or what the paper's code does",
    )
    checkpoint_every: int | None = Field(default=None, gt=0, description="steps; null: a tenth of the run")
    log_every: int = Field(default=1, gt=0, description="steps")


class ZeroConfig(Strict):
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 also gradients, 3 also weights."""

    stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "all"] = Field(default="none", description="to CPU memory; all: weights too")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.offload == "optimizer" and self.stage == 0:
            raise ValueError("offloading the optimizer needs stage 1, 2 or 3")
        if self.offload == "all" and self.stage != 3:
            raise ValueError("offloading the weights needs stage 3")
        return self


class WorkersConfig(Strict):
    """One group of workers trains one trial at a time."""

    count: int = Field(default=1, gt=0, description="workers of a group")
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default={"CPU": 1}, description="of one worker")
    reuse: bool = Field(default=True, description="a group runs trial after trial; false: a fresh group for each")
    max_concurrent: int | None = Field(default=None, gt=0, description="groups; null: as many as fit the cluster")
    max_failures: int = Field(default=2, ge=0, description="restarts of a trial whose group broke")


# --- evaluation, search, tracking -----------------------------------------------------------------------------------


class GenerationConfig(Strict):
    """Generation accuracy on held-out problems: avg@k at a temperature, or greedy."""

    scorer: Literal["exact_match", "numeric", "reasoning_gym"] = "exact_match"
    answer_pattern: str | None = Field(default=None, description="regular expression; its last match is the answer")
    problems: int = Field(default=256, gt=0)
    samples: int = Field(default=1, gt=0, description="k of avg@k")
    temperature: float = Field(default=1.0, ge=0, description="0 is greedy")
    max_new_tokens: int = Field(default=256, gt=0)
    batch_size: int = Field(default=64, gt=0, description="sequences generated at once by one worker")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="a completion ends before any of these texts"
    )
    seconds: float | None = Field(
        default=None, gt=0, description="that a completion may take; it is then cut, as truncated; null: no limit"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("greedy decoding (temperature 0) gives the same sample each time: set samples to 1")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        import re

        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class EvaluationConfig(Strict):
    generation: GenerationConfig | None = Field(default=None, description="null: held-out scores only")
    every: int | None = Field(default=None, gt=0, description="steps; null: only after training")


class ProbeConfig(Strict):
    samples: int = Field(default=512, gt=0, description="training samples that capability is measured on")


class AshaConfig(Strict):
    """Rungs at grace_period x reduction_factor^k steps, where searched trials are paused and the best go on."""

    grace_period: int = Field(gt=0, description="steps that every trial gets; a multiple of evaluation.every")
    reduction_factor: int = Field(default=4, gt=1, description="n: the best 1/n of a rung get n times its steps")


METRIC_MODES: dict[str, Literal["max", "min"]] = {
    "eval/accuracy": "max",
    "eval/nll": "min",
    "eval/mean_probability": "max",
}


class SearchConfig(Strict):
    trials: int = Field(default=16, ge=0, description="searched trials of a backbone, besides the baselines")
    sampler: Literal["tpe", "random"] = "tpe"
    metric: Literal["eval/accuracy", "eval/nll", "eval/mean_probability"] = "eval/accuracy"
    asha: AshaConfig | None = Field(default=None, description="pause trials at rungs and promote the best; null: none")
    seed: int = Field(default=0, ge=0)

    @property
    def mode(self) -> Literal["max", "min"]:
        return METRIC_MODES[self.metric]


class TrackingConfig(Strict):
    uri: str | None = Field(default=None, description="MLflow tracking URI; null: sqlite under the output folder")


# --- the sweep ------------------------------------------------------------------------------------------------------

# What decides what a trial computes, and what a study tries. The rest, such as the output's place, the tracking or the
# number of workers at once, may change when a sweep is resumed.
TRIAL_SECTIONS = {"seed", "backbones", "data", "training", "zero", "evaluation"}
STUDY_SECTIONS = TRIAL_SECTIONS | {"space", "baselines", "search", "probe"}
OVERRIDABLE = ("data", "space", "training", "zero", "workers", "evaluation", "probe")


class SweepConfig(Strict):
    name: Name
    output: Path = Path("runs")
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
    tracking: TrackingConfig = TrackingConfig()
    export: Literal["best", "all", "none"] = Field(default="best", description="trained models kept as folders")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [b.name for b in self.backbones]
        if duplicate := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"two backbones are named '{duplicate}': give each a name of its own")
        size, count = self.training.global_batch_size, self.workers.count
        if size % count:
            raise ValueError(f"training.global_batch_size ({size}) must be a multiple of workers.count ({count})")
        if self.search.metric == "eval/accuracy" and self.evaluation.generation is None:
            raise ValueError("search.metric eval/accuracy needs evaluation.generation; or search for eval/nll")
        if self.search.asha and not self.evaluation.every:
            raise ValueError("search.asha needs evaluation.every: it compares held-out metrics during training")
        if self.search.asha and self.evaluation.every:
            grace, every = self.search.asha.grace_period, self.evaluation.every
            if rest := grace % every:
                raise ValueError(
                    f"search.asha.grace_period ({grace}) must be a multiple of evaluation.every ({every}), because "
                    f"trials are compared where they are evaluated: set it to {grace - rest + every}"
                )
        generation = self.evaluation.generation
        if generation and generation.scorer == "reasoning_gym":
            heldout = self.data.heldout or self.data.train
            if heldout.kind != "reasoning_gym":
                raise ValueError("the scorer reasoning_gym needs held-out data of kind reasoning_gym")
        return self

    @property
    def folder(self) -> Path:
        return self.output / self.name

    def all_baselines(self) -> list[AnyObjective]:
        """The paper's four and the file's own, each once."""
        return list(dict.fromkeys([*PAPER_BASELINES, *self.baselines]))

    def for_backbone(self, name: str) -> "SweepConfig":
        """This file as one backbone sees it: only that backbone, its overrides merged in."""
        backbone = next(b for b in self.backbones if b.name == name)
        values = self.model_dump(mode="json")
        for section, override in backbone.overrides.items():
            values[section] = _merge(values[section], override)
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
    role: Literal["baseline", "search", "train"] = "search"
    quantile: Probability | None = Field(default=None, description="of the base model's p that gave the threshold")
    upper_quantile: Probability | None = Field(default=None, description="the same of the objective's upper")

    def name(self) -> str:
        """A name for a folder, e.g. `power-a1-above0.2-lr5e-05-seed0`."""
        return f"{self.objective.slug()}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Job:
    """A trial as it is handed to a group of workers. Its objective's threshold is already a probability.

    until: completed steps after which it saves and hands its group back; None: it runs to its end.
    """

    trial_id: str
    trial: TrialConfig
    folder: Path
    until: int | None = None


def _merge(base: Any, override: Any) -> Any:
    """The base, replaced key by key; a data source of another kind shares no keys with it."""
    if isinstance(base, dict) and isinstance(override, dict):
        if override.get("kind", base.get("kind")) != base.get("kind"):
            return override
        return base | {key: _merge(base.get(key), value) for key, value in override.items()}
    return override


def config_hash(*configs: BaseModel | dict[str, Any]) -> str:
    """A short hash that differs whenever any value of the configs differs."""
    plain = [c.model_dump(mode="json") if isinstance(c, BaseModel) else c for c in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def total_steps(training: TrainingConfig, samples: int) -> int:
    """Optimizer steps of a run: `steps`, or the whole global batches that `epochs` hold (at least one)."""
    if training.steps is not None:
        return training.steps
    return max(1, math.floor(training.epochs * samples / training.global_batch_size))
