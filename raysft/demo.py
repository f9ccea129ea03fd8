"""The capability continuum in miniature: the backbones and data of the built-in demo, offline and seeded.

One noisy training set is for all three backbones. They have one architecture and differ in what they saw before:
`weak` unrelated text only, `mid` some correct additions after it, `strong` more of them, until it solves most problems
at temperature 1 but not all. The settings were chosen so that the continuum shows; other tasks need not show it.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raysft import addition
from raysft.addition import Problem, Problems
from raysft.config import GenerationConfig
from raysft.errors import TrialFailed
from raysft.evaluation.generation import generate
from raysft.sweepfile import dump, load

Say = Callable[[str], None]

SHIPPED = Path(__file__).with_name("demo.yaml")
MANIFEST, SWEEP = "manifest.json", "sweep.yaml"
PAD = "<pad>"


@dataclass(frozen=True)
class Recipe:
    """How the materials are made. Raise `version` whenever the same numbers give other materials."""

    version: int = 1
    heldout: int = 250
    validation: int = 250
    demonstrations: int = 3200
    batch: int = 16
    learning_rate: float = 2e-3
    warmup: int = 30
    averaging: float = 0.98
    text_share: float = 0.1
    weak_steps: int = 150
    mid_steps: int = 400
    strong_steps: int = 2000
    strong_accuracy: tuple[float, float] = (0.8, 0.95)
    check_every: int = 100


RECIPE = Recipe()


def make_demo(folder: Path, seed: int, log: Say, recipe: Recipe = RECIPE) -> Path:
    """Write data, backbones and a sweep file under `folder`; returns the sweep file. Half a minute on one core.

    What was made there before by the same recipe and seed is used again. Raises TrialFailed where the strong backbone
    does not become strong.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps({"recipe": asdict(recipe), "seed": seed}))
    if _made(folder, identity):
        log(f"Using the backbones and data in {folder}")
    else:
        _make(folder, seed, log, recipe)
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
        manifest = identity | {"files": {name: _digest(folder / name) for name in files}}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (folder / SWEEP).write_text(_sweep_text(folder))
    return folder / SWEEP


def _made(folder: Path, identity: dict[str, object]) -> bool:
    """Whether the folder holds just this, undamaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest.pop("files")
        return manifest == identity and all(_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make(folder: Path, seed: int, log: Say, recipe: Recipe) -> None:
    for part in ("data", "backbones"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for file in (MANIFEST, SWEEP):
        (folder / file).unlink(missing_ok=True)
    problems = addition.draw_problems(seed, recipe.heldout, recipe.validation)
    addition.write_data(folder / "data", problems, recipe.demonstrations, seed)
    tokenizer = character_tokenizer()
    with _one_thread():
        for name, model in _backbones(problems, tokenizer, seed, recipe, log):
            model.save_pretrained(folder / "backbones" / name)
            tokenizer.save_pretrained(folder / "backbones" / name)


def _sweep_text(folder: Path) -> str:
    """The shipped sweep file, over the materials in `folder`."""
    paths = {f"backbones.{name}.path": folder / "backbones" / name for name in ("strong", "mid", "weak")}
    paths |= {f"data.{part}.path": folder / "data" / f"{part}.jsonl" for part in ("train", "heldout")}
    config = load(SHIPPED, [f"{key}={json.dumps(str(path))}" for key, path in paths.items()])
    return f"# {SHIPPED.name} of raysft, over the materials beside this file.\n{dump(config)}"


# --- backbones ------------------------------------------------------------------------------------------------------


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; the end of a line is the end token."""
    vocabulary = {PAD: 0} | {character: i for i, character in enumerate(addition.CHARACTERS, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=addition.END)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """0.2 million parameters, drawn by the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _backbones(
    problems: Problems, tokenizer: PreTrainedTokenizerFast, seed: int, recipe: Recipe, log: Say
) -> Iterator[tuple[str, LlamaForCausalLM]]:
    """weak, mid and strong: one model at three points of one training, each as it is reached."""
    training = Pretraining(new_model(tokenizer, seed), tokenizer, random.Random(f"pretraining {seed}"), recipe)
    model = training.averaged

    def mostly_additions(rng: random.Random) -> str:
        if rng.random() < recipe.text_share:
            return addition.unrelated_text(rng)
        problem = rng.choice(problems.practice)
        return addition.prompt(problem) + addition.solution(problem, rng)

    training.run(recipe.weak_steps, addition.unrelated_text)
    log(f"weak: {recipe.weak_steps} steps on unrelated text")
    yield "weak", model
    training.run(recipe.mid_steps, mostly_additions)
    log(f"mid: then {recipe.mid_steps} on additions, {accuracy(model, tokenizer, problems.validation, seed):.0%} right")
    yield "mid", model
    steps, right = recipe.mid_steps, 0.0
    low, high = recipe.strong_accuracy
    while right < low and steps < recipe.strong_steps:
        training.run(recipe.check_every, mostly_additions)
        steps += recipe.check_every
        right = accuracy(model, tokenizer, problems.validation, seed)
    log(f"strong: then {steps - recipe.mid_steps} more, {right:.0%} right")
    if not low <= right <= high:
        raise TrialFailed(
            f"the demo's strong backbone solves {right:.0%} of its problems after {steps} steps, not between {low:.0%} "
            f"and {high:.0%}; without that the demo shows nothing. Try another --seed."
        )
    yield "strong", model


class Pretraining:
    """AdamW on batches of lines, every character supervised; the rate warms up once and stays.

    `averaged` is the model with a running mean of the weights: at this rate the weights themselves jump between good
    and bad from one step to the next, and their mean grows better steadily.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, recipe: Recipe
    ) -> None:
        self.model, self.tokenizer, self.rng, self.recipe = model, tokenizer, rng, recipe
        self.mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1 / recipe.warmup, total_iters=recipe.warmup)

    @property
    def averaged(self) -> LlamaForCausalLM:
        return cast(LlamaForCausalLM, self.mean.module)

    def run(self, steps: int, line: Callable[[random.Random], str]) -> None:
        """So many optimizer steps, each on fresh lines."""
        self.model.train()
        for _ in range(steps):
            lines = [line(self.rng) + addition.END for _ in range(self.recipe.batch)]
            batch = self.tokenizer(lines, padding=True, return_tensors="pt", return_token_type_ids=False)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            self.model(**batch, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.mean.update_parameters(self.model)


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem], seed: int, samples: int = 1
) -> float:
    """Share of right answers over problems and samples, drawn at temperature 1."""
    ends, pad = [tokenizer.eos_token_id], int(tokenizer.pad_token_id)
    settings = GenerationConfig(samples=samples, temperature=1, max_new_tokens=addition.LONGEST, batch_size=500)
    prompts = tokenizer([addition.prompt(problem) for problem in problems])["input_ids"]
    written = generate(model, prompts, settings, ends, pad, seed, torch.device("cpu"))
    right = [
        addition.given_answer(str(tokenizer.decode(tokens, skip_special_tokens=True))) == addition.right_answer(problem)
        for problem, completions in zip(problems, written, strict=True)
        for tokens in completions
    ]
    return sum(right) / len(right)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A second thread gains nothing on a model this small, and their number must not change the result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
