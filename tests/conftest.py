"""A tiny real backbone, tiny real data, and one local Ray for the whole session."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from raysft.config import SweepConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and workers share the cores

settings.register_profile("raysft", deadline=None)  # no example is timed: the machine is noisy
settings.load_profile("raysft")

# Files that take minutes, the longest first: one that began last would run alone while the other process has no work.
FIRST = ("test_driver.py", "test_submit.py", "test_zero.py", "test_bench_sweep.py")

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

    interrupted = signal.getsignal(signal.SIGINT)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()
    signal.signal(signal.SIGINT, interrupted)  # Tune leaves its own, and pytest-xdist ends processes by it


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
