"""One bench, trial after trial; what stops it; and workers that do not agree."""

import ctypes
import gc
import gzip
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import MambaConfig, MambaForCausalLM

from raysft.capability import Capability
from raysft.config import Job, LoraConfig, SweepConfig, TrialConfig
from raysft.errors import InputError, TrialFailed
from raysft.inprocess import bench_here
from raysft.objectives import Power
from raysft.quiet import libraries_quiet
from raysft.ranks import Ranks
from raysft.trial import Bench

Make = Callable[..., SweepConfig]
GENERATION = {"answer_pattern": r"#(\d+)", "max_new_tokens": 4}


def trial_of(objective: Power, seed: int = 0, rate: float = 3e-3) -> TrialConfig:
    return TrialConfig(objective=objective, learning_rate=rate, seed=seed)


def job(folder: Path, trial: TrialConfig) -> Job:
    return Job(folder.name, trial, folder)


# --- a bench --------------------------------------------------------------------------------------------------------


def outcome(bench: Bench, folder: Path, trial: TrialConfig) -> dict[str, Any]:
    """All that a trial leaves behind: losses, result, completions and weights."""
    result = bench.run(job(folder, trial), export=lambda metrics: True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(folder / "model" / "model.safetensors")
    return {
        "status": result.status,
        "metrics": untimed(result.metrics),
        "log": [untimed(line) for line in lines],
        "completions": gzip.decompress((folder / "completions.jsonl.gz").read_bytes()),
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
    }


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock or the machine's memory says."""
    measured = {"train/tokens_per_second", "train/tflops", "train/peak_memory_gib"}
    return {key: value for key, value in metrics.items() if key not in measured and not key.startswith("time")}


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, dropout=0.1).model_dump()], ids=["full", "lora"])
def test_trials_of_one_bench_are_bitwise_those_of_fresh_ones(
    make_config: Make, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    config = make_config(training={"lora": lora, "steps": 3}, evaluation={"generation": {**GENERATION, "problems": 2}})
    trials = {
        "nll": trial_of(Power()),
        "p": trial_of(Power(exponent=1), seed=1),
        "cut": trial_of(Power(threshold=0.02), rate=1e-2),
    }
    fresh = {name: outcome(bench_here(config), tmp_path / f"fresh-{name}", trial) for name, trial in trials.items()}
    assert len({str(found["log"]) for found in fresh.values()}) == 3
    for order in list(permutations(trials))[::5]:  # the first order and the reverse
        bench = bench_here(config)
        for name in order:
            folder = tmp_path / "-".join([*order, name])
            assert outcome(bench, folder, trials[name]) == fresh[name], (order, name)


def test_base_weights_are_never_touched(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    before = {name: tensor.clone() for name, tensor in bench.base.state_dict().items()}
    bench.run(job(tmp_path / "a", trial_of(Power())), export=lambda metrics: True)
    bench.probe()
    after = bench.base.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_finished_trial_is_not_run_again(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    work = job(tmp_path / "a", trial_of(Power()))
    reports: list[int] = []
    first = bench.run(work, report=lambda step, metrics: reports.append(step))
    assert first.status == "finished"
    assert first.step == 6
    assert {"eval/nll", "eval/mean_probability", "eval/accuracy", "train/loss"} <= first.metrics.keys()
    assert reports == [2, 4, 6]
    assert not (work.folder / "checkpoints").exists()
    assert not (work.folder / "model").exists()  # nobody asked for it
    assert TrialConfig.model_validate_json((work.folder / "trial.json").read_text()) == work.trial
    log = (work.folder / "metrics.jsonl").read_bytes()
    again = bench_here(make_config()).run(work, report=lambda step, metrics: pytest.fail("it ran again"))
    assert again == first
    assert (work.folder / "metrics.jsonl").read_bytes() == log


def test_export_is_asked_once_with_the_final_metrics(make_config: Make, tmp_path: Path) -> None:
    asked: list[dict[str, float]] = []
    result = bench_here(make_config()).run(
        job(tmp_path / "a", trial_of(Power())), export=lambda metrics: bool(asked.append(metrics))
    )
    assert asked == [result.metrics]


def test_a_dropped_trial_leaves_no_result(make_config: Make, tmp_path: Path) -> None:
    bench = bench_here(make_config())
    work = job(tmp_path / "a", trial_of(Power()))
    result = bench.run(work, stop=lambda: "drop", export=lambda metrics: pytest.fail("it is not finished"))
    assert (result.status, result.step) == ("dropped", 1)
    assert not (work.folder / "result.json").exists()


def test_moving_output_and_tracking_does_not_forbid_a_resume(make_config: Make, tmp_path: Path) -> None:
    work = job(tmp_path / "a", trial_of(Power()))
    assert bench_here(make_config()).run(work, stop=lambda: "save").status == "saved"
    moved = make_config(name="other", output=str(tmp_path / "elsewhere"), tracking={"uri": "http://127.0.0.1:1"})
    assert bench_here(moved).run(work).status == "finished"


def test_a_resume_with_other_settings_is_refused(make_config: Make, tmp_path: Path) -> None:
    work = job(tmp_path / "a", trial_of(Power()))
    assert bench_here(make_config()).run(work, stop=lambda: "save").status == "saved"
    with pytest.raises(TrialFailed, match="was written with config"):
        bench_here(make_config(training={"weight_decay": 0.5})).run(work)


# --- what a bench refuses -------------------------------------------------------------------------------------------


@pytest.fixture
def cut_backbone(tiny_backbone: Path, tmp_path: Path) -> Callable[[int], Path]:
    """The tiny backbone with embeddings for so many tokens only; its tokenizer knows 44."""

    def make(rows: int) -> Path:
        from transformers import AutoModelForCausalLM

        folder = Path(shutil.copytree(tiny_backbone, tmp_path / f"rows-{rows}"))
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(rows)
        model.save_pretrained(folder)
        return folder

    return make


def test_a_tokenizer_beyond_the_embeddings_is_refused(make_config: Make, cut_backbone: Callable[[int], Path]) -> None:
    libraries_quiet()
    folder = cut_backbone(30)
    config = make_config(backbones=[{"name": "cut", "path": str(folder)}])
    with pytest.raises(
        InputError, match=r"its tokenizer writes token \d+ \('.+'\), but the model has embeddings for 30"
    ):
        bench_here(config)


def test_tokens_without_embedding_do_no_harm_where_they_are_not_used(
    make_config: Make, cut_backbone: Callable[[int], Path], tmp_path: Path
) -> None:
    """As a text model whose tokenizer has a token for images."""
    libraries_quiet()
    from transformers import AutoTokenizer

    folder = cut_backbone(44)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == 45
    bench = bench_here(make_config(backbones=[{"name": "cut", "path": str(folder)}]))
    assert bench.run(job(tmp_path / "a", trial_of(Power()))).status == "finished"


# --- workers that differ --------------------------------------------------------------------------------------------


def test_workers_that_do_not_agree_fail_on_every_rank(make_config: Make, tmp_path: Path) -> None:
    """Two processes over gloo: another configuration, then another trial; a bench outlives such a trial."""
    config = make_config(workers={"count": 2})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*program, str(r)], stdout=subprocess.PIPE, text=True) for r in range(2)]
    first, second = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes)
    assert first == second
    assert first["other config"].startswith("the workers do not agree on the configuration and data: [")
    assert first["other trial"].startswith("the workers do not agree on the trial: [")
    assert not (tmp_path / "other" / "trial.json").exists()
    alone = bench_here(config).probe()
    assert Capability(**first["capability"]) == alone


def as_rank(folder: Path, rank: int) -> dict[str, Any]:
    """A rank of the group above."""
    torch.set_num_threads(1)
    libraries_quiet()
    config = SweepConfig.model_validate_json((folder / "config.json").read_text())
    other = config.model_copy(update={"seed": config.seed + rank})
    bench = Bench(config, "plain", Ranks(), torch.device("cpu"))
    return {
        "other config": failure(lambda: Bench(other, "plain", Ranks(), torch.device("cpu"))),
        "other trial": failure(lambda: bench.run(job(folder / "other", trial_of(Power(exponent=rank))))),
        "capability": bench.probe().to_dict(),
    }


def failure(act: Callable[[], object]) -> str:
    try:
        act()
    except TrialFailed as error:
        return str(error)
    return "it did not fail"


if __name__ == "__main__":
    place, mine = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", f"file://{place}/rendezvous", rank=mine, world_size=2)
    print(json.dumps(as_rank(place, mine)))
    torch.distributed.destroy_process_group()


# --- an architecture that cannot pack -------------------------------------------------------------------------------


def test_a_backbone_that_cannot_pack_is_padded_and_says_so(
    make_config: Make, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A state-space model has no attention to keep within samples: each of its rows holds one sample."""
    libraries_quiet()
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "mamba"))
    torch.manual_seed(0)
    shape = MambaConfig(vocab_size=44, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
    (folder / "model.safetensors").unlink()
    MambaForCausalLM(shape).save_pretrained(folder)
    scores_only = {"evaluation": {"generation": None}, "search": {"metric": "eval/nll"}}
    bench = bench_here(make_config(backbones=[{"name": "mamba", "path": str(folder)}], **scores_only))
    assert not bench.collate.packed
    (note,) = bench.notes()
    assert "samples are padded and not packed" in note
    assert "MambaForCausalLM" in note
    result = bench.run(job(tmp_path / "t", trial_of(Power())))
    assert result.status == "finished"
    written = bench_here(make_config(backbones=[{"name": "mamba", "path": str(folder)}]))
    assert "completions are written by transformers' own generate" in written.notes()[1]
    assert bench_here(make_config()).notes() == []


# --- memory ---------------------------------------------------------------------------------------------------------


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """This process may hold so many bytes more than now."""
    gc.collect()
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: larger tensors are no part of a heap that is reused
    libc.malloc_trim(0)
    now = psutil.Process().memory_info().vms
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.faults
def test_a_trial_out_of_memory_goes_on_with_half_of_a_micro_batch(make_config: Make, tmp_path: Path) -> None:
    """Below a limit that it does not notice, and above those at which it fails, there is one at which it is retried."""
    config = make_config()
    training = {"steps": 2, "global_batch_size": 1024, "checkpoint_every": 1}
    repeated = tmp_path / "many.jsonl"
    assert config.data.train.kind == "file"
    repeated.write_text(Path(config.data.train.path).read_text() * 16)
    data = config.data.model_dump() | {"train": {"kind": "file", "path": str(repeated)}}
    with at_most(64 << 30):  # what oneDNN makes for products of a new shape is made now
        for name, tokens in (("halved", 10_000), ("free", 20_000)):
            training["micro_batch_tokens"] = tokens
            bench = bench_here(make_config(training=config.training.model_dump() | training, data=data))
            bench.run(job(tmp_path / name, trial_of(Power())))
    assert not list(tmp_path.glob("free/out_of_memory*"))

    def outcome(megabytes: float) -> str:
        folder = tmp_path / f"{megabytes}"
        with suppress(TrialFailed), at_most(int(megabytes * 2**20)):
            bench.run(job(folder, trial_of(Power())))
        if not (folder / "result.json").exists():
            return "failed"
        retried = (folder / "out_of_memory").exists()
        points, expected = logged(folder), logged(tmp_path / "free")
        assert [p["train/loss"] for p in points] == pytest.approx([p["train/loss"] for p in expected], rel=1e-5)
        assert points[-1]["train/micro_batch_tokens"] == (10_000 if retried else 20_000)
        return "retried" if retried else "undisturbed"

    low, high = 0.0, 256.0
    assert outcome(high) == "undisturbed"
    while (found := outcome(middle := (low + high) / 2)) != "retried":
        low, high = (middle, high) if found == "failed" else (low, middle)
        assert high - low > 0.1, "there is no limit at which the trial goes on with half as much"


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_samples_that_cannot_be_read_are_left_out_and_told(make_config: Make, additions: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text((additions / "train.jsonl").read_text() + '{"prompt": "1+1?"}\n')
    config = make_config(data={"train": {"kind": "file", "path": str(path)}, "max_bad": 0.1})
    bench = bench_here(config)
    (note,) = bench.notes()
    assert note.startswith(
        f"training data: 1 of 65 samples cannot be read. The first: {path} line 65: field 'response'"
    )
    assert note.endswith(f"listed in {config.output}/cache/{bench.train.fingerprint}/quarantine.jsonl")
    facts = bench.data_facts()
    assert [facts[part]["counts"]["bad"] for part in ("train", "heldout")] == [1, 0]
