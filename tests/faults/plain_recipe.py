"""What raysft is compared with under kills: a Tune function that launches a TorchTrainer, and Ray's MLflow callback.

As Ray's documentation puts the parts together, with default settings. Run again on the same folder, it restores.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, EVERY = 120, 10
EXPONENTS = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 10.0]


def train_loop(config: dict[str, Any]) -> None:
    """One DeepSpeed worker: f(p) = (1 - p^a)/a by full logits, a report with a checkpoint every few steps."""
    import deepspeed
    import ray.train
    import torch
    from sitecustomize import record
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__ = {}
    model = AutoModelForCausalLM.from_pretrained(config["backbone"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    settings = {
        "train_batch_size": 8,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    start = 0
    if (found := ray.train.get_checkpoint()) is not None:
        with found.as_directory() as folder:
            engine.load_checkpoint(folder, tag="step")
            start = engine.global_steps
    generator = torch.Generator()
    for step in range(start, STEPS):
        tokens = torch.randint(1, model.config.vocab_size, (8, 16), generator=generator.manual_seed(step))
        logp = engine(input_ids=tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
        a = config["exponent"]
        loss = ((1 - (a * logp).exp()) / a if a else -logp).mean()
        engine.backward(loss)
        engine.step()
        record(f"{a}", step + 1)
        if (step + 1) % EVERY == 0:
            with tempfile.TemporaryDirectory() as folder:
                engine.save_checkpoint(folder, tag="step")
                metrics = {"loss": float(loss), "step": step + 1}
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def trial(config: dict[str, Any]) -> None:
    import ray.train
    from ray import tune
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=config["output"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main(output: Path, backbone: str) -> int:
    """Returns 0 once every trial has ended well."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    trainable = tune.with_resources(trial, {"CPU": 0.01})
    if tune.Tuner.can_restore(str(output / "tune")):
        tuner = tune.Tuner.restore(str(output / "tune"), trainable, resume_errored=True)
    else:
        uri = f"sqlite:///{output}/mlflow.db"
        tuner = tune.Tuner(
            trainable,
            param_space={
                "exponent": tune.grid_search(EXPONENTS),
                "backbone": backbone,
                "output": str(output),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=2),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(output),
                callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name="plain")],
            ),
        )
    results = tuner.fit()
    failed = [result.path for result in results if result.error]
    print(json.dumps({"failed": failed}))
    ray.shutdown()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
