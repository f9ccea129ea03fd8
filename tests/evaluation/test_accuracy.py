"""evaluate() end to end: avg@k, its standard error, the records, and what is refused."""

import statistics
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch

from raysft.config import SweepConfig
from raysft.errors import InputError, TrialFailed
from raysft.evaluation import evaluate, load_problems
from raysft.inprocess import bench_here
from raysft.trial import Bench

Make = Callable[..., SweepConfig]


def evaluated(bench: Bench, seed: int = 0):  # type: ignore[no-untyped-def]
    return evaluate(bench.base, bench.tokenizer, bench.heldout, bench.config, bench.ranks, bench.device, seed)


def test_metrics_are_those_of_the_records(make_config: Make) -> None:
    """A pattern that matches any digit makes some completions of a random model right."""
    generation = {"answer_pattern": r"#\d*(\d)|(\d)", "problems": 6, "samples": 5, "max_new_tokens": 30}
    bench = bench_here(make_config(evaluation={"generation": generation}).for_backbone("tiny"))
    evaluation = evaluated(bench)
    records, metrics = evaluation.records, evaluation.metrics
    assert len(records) == 30
    assert [(r["problem"], r["sample"]) for r in records] == sorted((r["problem"], r["sample"]) for r in records)
    assert {r["problem"] for r in records} == {0, 2, 4, 6, 8, 10}
    by_problem = [statistics.fmean(r["score"] for r in records[i : i + 5]) for i in range(0, 30, 5)]
    assert 0 < statistics.fmean(by_problem) < 1
    assert metrics["eval/accuracy"] == pytest.approx(statistics.fmean(by_problem))
    assert metrics["eval/accuracy_se"] == pytest.approx(statistics.stdev(by_problem) / 6**0.5)
    assert metrics["eval/truncated"] == statistics.fmean(r["truncated"] for r in records)
    assert metrics["eval/generated_tokens"] == statistics.fmean(r["tokens"] for r in records)
    for record in records:
        example = bench.heldout.examples[record["problem"]]
        assert (record["origin"], record["reference"]) == (example.origin, example.response)
        assert record["prompt"] == example.messages[0]["content"]
        assert record["answer"] is None or record["answer"] in record["completion"]
    assert asdict(evaluated(bench)) == asdict(evaluation)
    assert evaluated(bench, seed=1).records != records


def test_held_out_scores_alone(make_config: Make) -> None:
    bench = bench_here(make_config(evaluation={"generation": None}, search={"metric": "eval/nll"}).for_backbone("tiny"))
    evaluation = evaluated(bench)
    names = ("nll", "mean_probability", "token_accuracy", "entropy", "calibration_error")
    assert set(evaluation.metrics) == {f"eval/{name}" for name in names}
    assert evaluation.records == []


def test_a_single_problem_has_no_standard_error(make_config: Make) -> None:
    generation = {"answer_pattern": r"#(\d+)", "problems": 1, "samples": 2, "max_new_tokens": 4}
    bench = bench_here(make_config(evaluation={"generation": generation}).for_backbone("tiny"))
    assert "eval/accuracy_se" not in evaluated(bench).metrics


def test_weights_that_are_no_numbers_fail_the_trial(bench: Bench) -> None:
    with torch.no_grad():
        next(bench.base.parameters()).fill_(float("nan"))
    with pytest.raises(TrialFailed, match="no longer numbers"):
        evaluated(bench)


def test_what_cannot_be_scored_is_refused_before_training(make_config: Make) -> None:
    too_long = {"answer_pattern": r"#(\d+)", "problems": 6, "max_new_tokens": 128}
    with pytest.raises(InputError, match="exceed the model's 128 positions") as error:
        bench_here(make_config(evaluation={"generation": too_long}).for_backbone("tiny"))
    assert error.value.fix == "Set it to at most 124."
    nowhere = {"answer_pattern": r"@(\d+)", "problems": 6, "max_new_tokens": 4}
    with pytest.raises(InputError, match="has no match of answer_pattern"):
        bench_here(make_config(evaluation={"generation": nowhere}).for_backbone("tiny"))


def test_problems_are_the_heldout_ones(bench: Bench) -> None:
    (problems,) = load_problems(bench.base, bench.tokenizer, bench.heldout, bench.config)
    texts = [bench.tokenizer.decode(tokens) for tokens in problems.prompts]
    assert texts == [bench.heldout.examples[i].messages[0]["content"] for i in problems.numbers]
