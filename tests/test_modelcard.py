"""The card of a study's best model: what the hub reads at its top, and what a person reads below."""

import re
from pathlib import Path

import pytest
import yaml

from raysft import __version__
from raysft.capability import LEVELS, Capability
from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.modelcard import card, formula, write_card
from raysft.objectives import Power, known
from raysft.sweep.driver import StudyResult
from raysft.sweep.ledger import TrialRow

METRIC = "eval/accuracy"
BEST = Power(exponent=0.4278, threshold=0.1)
CONFIG = SweepConfig.model_validate(
    {
        "name": "sweep",
        "backbones": [{"name": "tiny", "path": "org/tiny"}],
        "data": {"train": {"kind": "hub", "path": "org/data"}, "heldout": {"kind": "file", "path": "test.jsonl"}},
        "evaluation": {"generation": {}},
        "tracking": {"tags": {"domain": "math"}},
    }
)


def row(number: int, objective: Power, role: str, value: float | None) -> TrialRow:
    trial = TrialConfig.model_validate({"objective": objective, "learning_rate": 1e-3, "seed": 3, "role": role})
    metrics = {} if value is None else {METRIC: value}
    return TrialRow(f"{number:04d}", trial, "FAILED" if value is None else "FINISHED", metrics, 400)


@pytest.fixture
def result() -> StudyResult:
    values = (0.5, 0.75, None, 0.25)
    rows = [row(i, o, "baseline", value) for i, (o, value) in enumerate(zip(PAPER_BASELINES, values, strict=True))]
    rows.append(row(4, BEST, "search", 0.875))
    capability = Capability(0.4321, -1.0, 0.3, 900, 60, [float(level) for level in LEVELS], [45] * 20)
    return StudyResult("tiny", capability, rows, rows[4], interrupted=False)


def test_what_the_hub_reads(result: StudyResult, tmp_path: Path) -> None:
    write_card(tmp_path, CONFIG, result)
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "base_model": "org/tiny",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["raysft", "sft", "math"],
        "datasets": ["org/data"],
    }


def test_what_a_person_reads(result: StudyResult) -> None:
    text = card(CONFIG, result, result.trials[4])
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE))
    assert (rows["type"], rows["exponent"], rows["learned from"]) == ("power", "0.4278", "tokens with p >= 0.1")
    assert (rows["nll"], rows["-p"], rows["-p^10"]) == ("0.5000", "0.7500", "not finished")
    assert rows["**exponent 0.4278, p >= 0.1** (this model)"] == "**0.8750**"
    for told in ("(1 - p^a)/a", "0.432", f"raysft](https://arxiv.org/abs/2510.00526) {__version__}", "test.jsonl"):
        assert told in text
    assert "400 steps of 256 samples, learning rate 0.001, seed 3" in text


def test_a_baseline_that_won_stands_there_once(result: StudyResult) -> None:
    best = result.trials[1]
    text = card(CONFIG, result, best)
    assert text.count("| **-p** (this model) | **0.7500** |") == 1
    assert "| -p |" not in text
    assert "| learned from | all tokens |" in text


def test_secrets_stay_out(result: StudyResult, tmp_path: Path) -> None:
    backbone = {"name": "tiny", "path": "https://me:secret@host/model"}
    config = SweepConfig.model_validate(CONFIG.model_dump() | {"backbones": [backbone]})
    write_card(tmp_path, config, result)
    assert "secret" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(known()))
def test_every_objective_has_a_formula_on_one_line(name: str) -> None:
    found = formula(known()[name].model_validate({}))
    assert "\n" not in found
    assert re.search(r"p|softmax|q", found)
    assert len(found) > 20
