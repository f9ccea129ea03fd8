"""How a trial trains, and on what: sections training, zero and workers."""

import math
from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysft.objectives.base import Probability
from raysft.strict import Strict


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
    max_skipped_steps: int = Field(
        default=3, ge=0, description="steps left out because loss or gradient is not finite; one more fails the trial"
    )
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


RESOURCES = ("CPU", "GPU", "memory", "object_store_memory", "TPU", "HPU", "NPU", "neuron_cores")  # Ray's own


class WorkersConfig(Strict):
    """One group of workers trains one trial at a time, or as many LoRA trials as it has lanes."""

    count: int = Field(default=1, gt=0, description="workers of a group")
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default={"CPU": 1}, description="of one worker")
    reuse: bool = Field(default=True, description="a group runs trial after trial; false: a fresh group for each")
    lanes: int = Field(
        default=1,
        gt=0,
        description="LoRA trials that a group of one worker trains side by side on one base model, without DeepSpeed; "
        "a trial's numbers then depend on the others by round-off",
    )
    max_concurrent: int | None = Field(default=None, gt=0, description="groups; null: as many as fit the cluster")
    wait_minutes: float = Field(
        default=0,
        ge=0,
        description="an autoscaler may take to start nodes for max_concurrent groups",
    )
    max_failures: int = Field(default=2, ge=0, description="restarts of a trial whose group broke")

    @model_validator(mode="after")
    def _waits_for_a_number(self) -> Self:
        if self.wait_minutes and self.max_concurrent is None:
            raise ValueError("wait_minutes needs max_concurrent: how many groups the autoscaler shall bring nodes for")
        return self

    @field_validator("resources")
    @classmethod
    def _no_misspelt_resource(cls, resources: dict[str, float]) -> dict[str, float]:
        """A cluster may have resources of its own, but one that nearly is Ray's would be waited for in vain."""
        known = {name.casefold(): name for name in RESOURCES}
        for name in set(resources).difference(RESOURCES):
            near = get_close_matches(name.casefold(), known, n=1, cutoff=0.6)
            if near and abs(len(name) - len(near[0])) <= 1:
                fix = f"write '{known[near[0]]}', or another name for yours"
                raise ValueError(f"'{name}' is no resource of Ray's: {fix}")
        return resources


def total_steps(training: TrainingConfig, samples: int) -> int:
    """Optimizer steps of a run: `steps`, or the whole global batches that `epochs` hold (at least one)."""
    if training.steps is not None:
        return training.steps
    return max(1, math.floor(training.epochs * samples / training.global_batch_size))
