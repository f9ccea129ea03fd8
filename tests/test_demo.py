"""The demo's materials with a recipe of a few steps: made once, checked, used again, made anew when they differ."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raysft import addition
from raysft.backbone import load_model, load_tokenizer
from raysft.check import check
from raysft.config import BackboneConfig
from raysft.demo import MANIFEST, SWEEP, Pretraining, Recipe, accuracy, character_tokenizer, make_demo, new_model
from raysft.errors import TrialFailed
from raysft.quiet import libraries_quiet
from raysft.sweepfile import load

QUICK = Recipe(
    heldout=8,
    validation=8,
    demonstrations=32,
    batch=4,
    weak_steps=2,
    mid_steps=2,
    strong_steps=6,
    check_every=2,
    strong_accuracy=(0.0, 1.0),
)
NAMES = ("strong", "mid", "weak")


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    libraries_quiet()


@pytest.fixture
def threads() -> Iterator[int]:
    """A number of threads that neither the test nor the demo would choose by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The materials of seed 0. Tests read them only."""
    return make_demo(tmp_path_factory.mktemp("demo") / "materials", 0, print, QUICK).parent


def make(folder: Path, seed: int = 0, recipe: Recipe = QUICK) -> list[str]:
    """Make the materials; returns what was logged."""
    said: list[str] = []
    assert make_demo(folder, seed, said.append, recipe) == folder / SWEEP
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the sweep file, whose paths are the folder's own."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != SWEEP]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_sweep_file_is_accepted_and_names_the_materials(made: Path) -> None:
    config = load(made / SWEEP)
    plan = check(config)
    assert [b.name for b in plan.backbones] == list(NAMES)
    assert {b.samples for b in plan.backbones} == {QUICK.demonstrations}
    assert {b.trials for b in plan.backbones} == {8}
    assert [Path(b.path) for b in config.backbones] == [made / "backbones" / name for name in NAMES]
    assert {Path(config.data.train.path).parent, Path(config.data.heldout.path).parent} == {made / "data"}  # type: ignore[union-attr]


def test_a_relative_folder_gives_a_file_that_works_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = make_demo(Path("here"), 0, print, replace(QUICK, weak_steps=1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(check(load(file)).backbones) == 3


def test_backbones_load_and_differ(made: Path) -> None:
    weights = []
    for name in NAMES:
        config = BackboneConfig(name=name, path=str(made / "backbones" / name))
        weights.append(load_model(config).get_input_embeddings().weight)
        tokenizer = load_tokenizer(config)
        assert tokenizer.decode(tokenizer("7+5=12#12\n")["input_ids"]) == "7+5=12#12\n"
        assert (tokenizer.pad_token_id, tokenizer.eos_token) == (0, addition.END)
    strong, mid, weak = weights
    assert not torch.equal(mid, weak)
    assert torch.equal(strong, mid)  # with this recipe's bound, mid is strong already


def test_backbones_are_averages_of_their_training(made: Path) -> None:
    """The weights that are stored are what was trained, away from where it began."""
    begun = new_model(character_tokenizer(), seed=0)
    weak = AutoModelForCausalLM.from_pretrained(made / "backbones" / "weak")
    pairs = list(zip(begun.parameters(), weak.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in pairs)
    assert all(torch.allclose(a, b, atol=0.05) for a, b in pairs)


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(made: Path, tmp_path: Path, threads: int) -> None:
    torch.manual_seed(12345)
    used: list[int] = []
    make_demo(tmp_path / "again", 0, lambda text: used.append(torch.get_num_threads()), QUICK)
    assert used == [1, 1, 1]
    assert torch.get_num_threads() == threads
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_gives_other_weights_and_data(made: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", seed=1)
    ours, theirs = contents(made), contents(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    same = {name for name in ours if ours[name] == theirs[name]}
    assert not any(name.endswith((".safetensors", ".jsonl")) for name in same)


def test_materials_are_used_again_and_remade_where_they_differ(tmp_path: Path) -> None:
    folder = tmp_path / "materials"
    trained = "weak: 2 steps on unrelated text"
    assert trained in make(folder)
    expected = contents(folder)
    weights = folder / "backbones" / "strong" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert make(folder) == [f"Using the backbones and data in {folder}"]
    assert weights.stat().st_mtime_ns == written
    (folder / SWEEP).unlink()  # written anew each time: no reason to train
    assert len(make(folder)) == 1

    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    for damage in (
        lambda: weights.write_bytes(flipped),
        weights.unlink,
        lambda: (folder / "data" / "train.jsonl").write_text(""),
        lambda: (folder / MANIFEST).write_text('{"recipe'),
        lambda: (folder / MANIFEST).write_text("{}"),
        (folder / MANIFEST).unlink,
    ):
        damage()
        assert trained in make(folder)
        assert contents(folder) == expected
    assert trained in make(folder, seed=1)
    assert trained in make(folder, seed=1, recipe=replace(QUICK, version=2))
    assert trained not in make(folder, seed=1, recipe=replace(QUICK, version=2))


def test_a_strong_backbone_that_is_not_strong_is_refused(tmp_path: Path, threads: int) -> None:
    with pytest.raises(TrialFailed, match=r"after 6 steps, not between 90% and 100%.*another --seed"):
        make(tmp_path, recipe=replace(QUICK, strong_accuracy=(0.9, 1.0)))
    assert torch.get_num_threads() == threads
    assert not (tmp_path / SWEEP).exists()
    assert len(make(tmp_path)) == 3  # what the failure left is not taken for materials


def test_accuracy_counts_right_answers() -> None:
    """A model that has learned one problem by heart, and answers every other with its solution."""
    tokenizer, seen, other = character_tokenizer(), (47, 85), (12, 34)
    training = Pretraining(new_model(tokenizer, 0), tokenizer, random.Random(0), replace(QUICK, warmup=1))
    training.run(60, lambda rng: addition.prompt(seen) + addition.solution(seen, rng))
    assert accuracy(training.model, tokenizer, [seen], seed=0, samples=3) == 1
    assert accuracy(training.model, tokenizer, [seen, other], seed=0) == 0.5
