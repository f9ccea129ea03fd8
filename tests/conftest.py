"""A tiny real backbone, tiny real data, made-up sweeps in a real MLflow, and one local Ray for the whole session."""

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from raysft.capability import CONFIDENT, LEVELS, Capability
from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.objectives import Power

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and workers share the cores

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background job; processes of tests inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("raysft", deadline=None)  # no example is timed: the machine is noisy
settings.load_profile("raysft")

# Files that take minutes, the longest first: one that began last would run alone while the other process has no work.
FIRST = ("test_driver.py", "test_submit.py", "test_zero.py", "test_bench_sweep.py", "test_nodes.py", "test_secrets.py")

CHARACTERS = "0123456789+=?#,abcdefghijklmnopqrstuvwxyz \n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; the order is otherwise kept."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and 32 hidden units over single characters, with random weights."""
    return make_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


def make_backbone(folder: Path, seed: int = 0, tie: bool = True) -> Path:
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0} | {c: i + 1 for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="\n").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=vocabulary["\n"],
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def poisoned_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose embedding of the letter z is NaN."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_backbone(tmp_path_factory.mktemp("poisoned") / "backbone", tie=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[1 + CHARACTERS.index("z")] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def poisoned(make_config: Callable[..., SweepConfig], poisoned_backbone: Path, tmp_path: Path) -> SweepConfig:
    """A sweep of one such backbone, with a single sample that holds the letter: it is due at the third of six steps."""
    from raysft.data.order import SampleOrder

    config = make_config(backbones=[{"name": "tiny", "path": str(poisoned_backbone)}])
    source = config.data.train
    assert source.kind == "file"
    rows = [json.loads(line) for line in Path(source.path).read_text().splitlines()]
    due = SampleOrder(len(rows), config.training.global_batch_size, seed=0).at(2)[5]
    rows[due]["prompt"] = f"z{rows[due]['prompt']}"
    path = tmp_path / "poisoned.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = config.data.model_copy(update={"train": source.model_copy(update={"path": path})})
    return config.model_copy(update={"data": data})


@pytest.fixture(scope="session")
def additions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (64 one-digit additions) and heldout.jsonl (12)."""
    folder = tmp_path_factory.mktemp("additions")
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(0).shuffle(pairs)
    for name, part in (("train", pairs[:64]), ("heldout", pairs[64:76])):
        rows = [{"prompt": f"{a}+{b}?", "response": f"so {a}+{b}={a + b}#{a + b}"} for a, b in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_config(tiny_backbone: Path, additions: Path, tmp_path: Path) -> Callable[..., SweepConfig]:
    """A small valid sweep; keyword arguments replace or (for mappings) extend its sections."""

    def make(**changes: Any) -> SweepConfig:
        values: dict[str, Any] = {
            "name": "tiny",
            "output": str(tmp_path / "runs"),
            "backbones": [{"name": "tiny", "path": str(tiny_backbone)}],
            "data": {
                "train": {"kind": "file", "path": str(additions / "train.jsonl")},
                "heldout": {"kind": "file", "path": str(additions / "heldout.jsonl")},
                "template": "plain",
                "max_length": 64,
            },
            "space": {"exponent": {"low": 0.1, "high": 2.0}},
            "training": {
                "steps": 6,
                "global_batch_size": 8,
                "micro_batch_tokens": 40,
                "learning_rate": 3e-3,
                "precision": "fp32",
                "checkpoint_every": 2,
            },
            "evaluation": {
                "generation": {"answer_pattern": "#(\\d+)", "problems": 6, "samples": 2, "max_new_tokens": 16}
            },
            "search": {"trials": 1},
        }
        for section, change in changes.items():
            if isinstance(change, dict) and isinstance(values.get(section), dict):
                change = values[section] | change
            values[section] = change
        return SweepConfig.model_validate(values)

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of two cores on loopback for all tests that need it."""
    import ray

    from raysft.sweep.session import on_loopback

    interrupted = signal.getsignal(signal.SIGINT)
    with on_loopback():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()
    signal.signal(signal.SIGINT, interrupted)  # Tune leaves its own, and pytest-xdist ends processes by it


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, to be copied: making one takes seconds."""
    from raysft.tracking import Tracking

    folder = tmp_path_factory.mktemp("migrated")
    backbone, source = {"name": "none", "path": "none"}, {"kind": "file", "path": "none.jsonl"}
    values = {"name": "unused", "output": str(folder), "backbones": [backbone], "data": {"train": source}}
    Tracking(SweepConfig.model_validate(values | {"search": {"metric": "eval/nll"}}))
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def make_sweeps(migrated: Path) -> Callable[[Path], "MadeSweeps"]:
    def make(output: Path) -> MadeSweeps:
        output.mkdir()
        shutil.copy(migrated, output / "mlflow.db")
        return MadeSweeps(output)

    return make


@pytest.fixture
def made(make_sweeps: Callable[[Path], "MadeSweeps"], tmp_path: Path) -> "MadeSweeps":
    return make_sweeps(tmp_path / "runs")


class MadeSweeps:
    """Made-up sweeps, written to a real MLflow as a sweep would have. output: the folder that they share."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def sweep(self, *backbones: str, name: str = "made", **changes: Any) -> SweepConfig:
        values: dict[str, Any] = {
            "name": name,
            "output": str(self.output),
            "backbones": [{"name": b, "path": f"models/{b}"} for b in backbones or ("tiny",)],
            "data": {"train": {"kind": "file", "path": "train.jsonl"}},
            "training": {"steps": 20, "global_batch_size": 8},
            "evaluation": {"generation": {"answer_pattern": "#(.+)"}},
        }
        return SweepConfig.model_validate(values | changes)

    @staticmethod
    def capable(mean: float) -> Capability:
        """A base model whose p is spread as Beta(3 mean, 3 (1 - mean)), by 4,000 draws."""
        p = np.random.default_rng(0).beta(3 * mean, 3 * (1 - mean), 4000)
        histogram = np.histogram(p, bins=20, range=(0, 1))[0].tolist()
        quantiles, above = np.quantile(p, LEVELS).tolist(), float((p >= CONFIDENT).mean())
        return Capability(float(p.mean()), float(np.log(p).mean()), above, p.size, 100, quantiles, histogram)

    @staticmethod
    def trials(*exponents: float, rate: float = 1e-3) -> list[TrialConfig]:
        """The paper's baselines, then trials of these exponents."""
        given = [TrialConfig(objective=b, learning_rate=rate, seed=0, role="baseline") for b in PAPER_BASELINES]
        return given + [TrialConfig(objective=Power(exponent=a), learning_rate=rate, seed=0) for a in exponents]

    @staticmethod
    def wants(best: float) -> Callable[[TrialConfig], float]:
        """How often a trial is right, for a backbone that wants this exponent: the less, the farther it is."""

        def accuracy(trial: TrialConfig) -> float:
            exponent = max(0.0, getattr(trial.objective, "exponent", 0.0))
            away = abs(np.log10(0.05 + exponent) - np.log10(0.05 + best))
            return float(np.clip(0.8 - 0.25 * away - 0.05 * (trial.objective.threshold or 0), 0, 1))

        return accuracy

    def track(
        self,
        config: SweepConfig,
        trials: Sequence[TrialConfig],
        accuracy: Callable[[TrialConfig], float] | None = None,
        capability: Capability | None = None,
        others: dict[int, tuple[str, str]] | None = None,
        ended: bool = True,
    ) -> None:
        """The study of a config made by for_backbone: 40 problems, each asked twice.

        others: status and reason of trials that did not finish, by their position; these have no score.
        """
        from raysft.tracking import Tracking

        study = Tracking(config).start_study(config)
        study.log_capability((capability or self.capable(0.5)).to_dict())
        study.log_data("train", config.data.train, "0" * 16, {"kept": 100, "tokens": 1200})
        for position, trial in enumerate(trials):
            trial_id = f"{position:04d}"
            status, reason = (others or {}).get(position, ("FINISHED", ""))
            points: list[dict[str, Any]] = [
                {"step": step, "time": 1.7e9 + step, "train/loss": 2 / step, "train/mean_probability": 1 - 0.5 / step}
                for step in range(1, 21)
            ]
            records = None
            if status == "FINISHED":
                records = config.folder / config.backbone.name / "trials" / trial_id / "completions.jsonl.gz"
                scored = _answers(trial.seed, (accuracy or self.wants(1.0))(trial))
                points[-1] |= {"eval/nll": 1.0, "time/seconds": 30.0, **_written(scored, records)}
            study.start_trial(trial_id, trial)
            study.log_points(trial_id, points)
            if status != "RUNNING":
                study.end_trial(trial_id, status, reason, completions=records)  # type: ignore[arg-type]
        if ended:
            study.end("FINISHED")


def _answers(seed: int, accuracy: float) -> list[dict[str, Any]]:
    right = np.random.default_rng(seed).random((40, 2)) < accuracy
    asked = {"task": "generation", "reference": "1", "completion": "#1", "how": "exact"}
    return [asked | {"problem": p, "sample": s, "score": float(score)} for (p, s), score in np.ndenumerate(right)]


def _written(records: list[dict[str, Any]], path: Path) -> dict[str, float]:
    """Write them as a trial does; returns what it would log of them."""
    from raysft.evaluation.accuracy import summary
    from raysft.records import write_records

    path.parent.mkdir(parents=True)
    write_records(records, path)
    return summary(records, "eval/")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a store that speaks S3, on loopback; its keys lie in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}
    yield os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", *keys):
        os.environ.pop(name)
        if name in before:
            os.environ[name] = before[name]
    server.stop()


@pytest.fixture
def bucket(s3: str) -> str:
    """The address of a folder in a new bucket."""
    from pyarrow import fs

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    fs.FileSystem.from_uri(f"s3://{name}/?allow_bucket_creation=true")[0].create_dir(name)
    return f"s3://{name}/team/runs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        missing = "needs root, to mount a small file system"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a process that writes there may end a moment later


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def fill(place: Path, leaving: int) -> Path:
    """A file that takes all of the disk but so many bytes."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - leaving)))
    return ballast


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# No GPU, no sandbox (tests may run as root, in a container), WebGL in software, and no calls to its makers.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Headless Chromium. Of a module, not of the session: while it runs, this thread has an event loop of its own."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        missing = "needs Chromium: apt-get install chromium, or CHROMIUM=path/to/it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """An empty page that reaches nothing but this machine; what its scripts throw fails the test."""
    thrown: list[str] = []

    def local(route: "Route") -> None:
        inside = route.request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))
        route.continue_() if inside else route.abort()

    with browser.new_context(viewport={"width": 1700, "height": 1600}) as context:
        context.set_default_timeout(120_000)  # milliseconds: the machine may be busy
        context.route("**/*", local)
        page = context.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        yield page
    assert thrown == []
