"""DeepSpeed ZeRO behind the engine contract. Runs on gloo and CPU where there is no GPU."""

import copyreg
import gc
import inspect
import os
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from raysft.config import SweepConfig
from raysft.data.batch import Batch
from raysft.objectives.head import AnyObjective, HeadOutput
from raysft.ranks import Ranks
from raysft.training.engine import MakeModel, Model, adamw, load_weights
from raysft.training.model import SFTModel

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported

import deepspeed
import deepspeed.ops
from deepspeed.checkpoint.ds_to_universal import main as to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils.tensor_fragment import fragment_address

# On a CPU, DeepSpeed would look which of its kernels could be compiled, and compile one for inference: most of a minute
# at the first start, a C++ compiler needed, and again wherever another version of ninja is found.
deepspeed.ops.__compatible_ops__ = {}

# DeepSpeed's cache of a method of this class, under a decorator; its keys are coordinators and modules.
_release = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
TAG = "zero"  # of its checkpoints: the folder that they lie in
RELEASE_CACHE = inspect.getclosurevars(_release).nonlocals["func"]

IN_CHECKPOINTS = (LossScaler, ZeroStageEnum, fragment_address)  # of DeepSpeed's own classes
# Python 3.11.0 to 3.11.3 would write a stage as a call of getattr, which no file that is loaded may ask for.
copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def deepspeed_config(config: SweepConfig) -> dict[str, Any]:
    """DeepSpeed's settings for a study's training and zero sections."""
    training, zero = config.training, config.zero
    optimization: dict[str, Any] = {"stage": zero.stage}
    if zero.offload != "none":
        optimization["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero.offload == "all":
        optimization["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # The loop says which micro-batch is a step's last; how many there are differs from step to step.
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.global_batch_size // config.workers.count,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": optimization,
        "bf16": {"enabled": training.precision == "bf16"},
        # Without ZeRO, DeepSpeed sums bf16 gradients in bf16 only.
        "data_types": {"grad_accum_dtype": "fp32" if zero.stage else None},
        # torch's AdamW everywhere: DeepSpeed's own CPU and fused optimizers are compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


class ZeroEngine:
    """`make_model` gives a fresh model of the trial's shape; ZeRO-3 gathers its shards into one for evaluation."""

    def __init__(self, model: SFTModel, config: SweepConfig, ranks: Ranks, make_model: MakeModel) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.make_model = make_model
        self.stage = config.zero.stage
        self.ranks, self.world = ranks, ranks.world
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(parameters, config.training),
            config=deepspeed_config(config),
            dist_init_required=False,
        )
        # DeepSpeed's own would run whatever a pickle asks for.
        self.engine.checkpoint_engine.load = partial(load_weights, classes=IN_CHECKPOINTS)

    def forward(self, batch: Batch, objective: AnyObjective) -> HeadOutput:
        return self.engine(batch.to(self.engine.device), objective)

    def backward(self, loss: torch.Tensor, boundary: bool) -> None:
        # DeepSpeed averages over ranks; the loss is already divided by the global count, so undo that.
        self.engine.set_gradient_accumulation_boundary(boundary)
        self.engine.backward(loss * self.world, scale_wrt_gas=False)
        if not boundary:
            self.engine.step()  # only counts the micro-batch

    def step(self, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._whole_gradients_norm() if self.stage == 0 else None
        if norm is not None and not norm.isfinite():
            self.engine.zero_grad()
            return float(norm)
        self.engine.step()  # at the other stages, DeepSpeed itself makes no update of gradients that are not finite
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _whole_gradients_norm(self) -> torch.Tensor:
        """The norm of the reduced gradients, which DeepSpeed does not record at stage 0 (inf: nothing is clipped)."""
        return torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), float("inf"))

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path, world: int) -> None:
        if world == self.world or self.stage == 0:  # where each rank has all of the state
            self.engine.load_checkpoint(str(folder), tag=TAG)
        else:
            self._load_of_others(folder)

    def _load_of_others(self, folder: Path) -> None:
        """Another number of ranks wrote it: DeepSpeed's universal format, made beside it, fits any."""
        universal = folder.with_name(f".{folder.name}-universal")
        if self.ranks.keeps_files:
            shutil.rmtree(universal, ignore_errors=True)
            for file in (folder / TAG).glob("*.pt"):  # the conversion would run whatever a pickle asks for
                load_weights(file, "cpu", IN_CHECKPOINTS)
            asked = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            paths = {"input_folder": str(folder / TAG), "output_folder": str(universal / TAG)}
            with redirect_stdout(None), redirect_stderr(StringIO()):
                to_universal(Namespace(**asked, **paths, inject_missing_state=True))
        self.ranks.barrier()
        self.engine._config.load_universal_checkpoint = True
        self.engine.load_checkpoint(str(universal), tag=TAG)
        self.engine._config.load_universal_checkpoint = False
        self.ranks.barrier()
        if self.ranks.keeps_files:
            shutil.rmtree(universal, ignore_errors=True)

    def full_model(self) -> Model:
        if self.stage < 3:
            return self.engine.module.causal_lm
        whole = self.make_model().to(self.engine.device)
        shards = dict(self.engine.module.causal_lm.named_parameters())
        with torch.no_grad():
            for name, target in whole.named_parameters():
                with deepspeed.zero.GatheredParameters([shards[name]]):
                    target.copy_(shards[name])
        return whole

    def train(self, mode: bool) -> None:
        self.engine.train(mode)

    def close(self) -> None:
        """Let go of weights, gradients and optimizer state, which the next trial's would come on top of."""
        module = self.engine.module
        self.engine.destroy()
        if self.stage == 3:  # two globals of DeepSpeed would keep every model that it ever sharded
            FWD_MODULE_STACK[:] = [m for m in FWD_MODULE_STACK if m is not module]
            RELEASE_CACHE.cache_clear()
        del module, self.engine
        gc.collect()  # an engine refers to itself; Python, by its own count of objects, would let tens of them pile up
