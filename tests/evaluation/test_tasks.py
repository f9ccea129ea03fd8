"""Tasks beside the held-out data: metrics, records, what is refused before training, scoring anew."""

import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import SweepConfig
from raysft.errors import InputError
from raysft.evaluation import build_scorer, evaluate, rescored, summarised
from raysft.evaluation.accuracy import pass_at
from raysft.inprocess import bench_here

Make = Callable[..., SweepConfig]


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "task.jsonl"
    rows = [{"question": f"{a}+{a}?", "answer": str(a)[-1], "o": ["1", "22", str(a)]} for a in range(1, 7)]
    path.write_text("".join(json.dumps(row | {"label": "C"}) + "\n" for row in rows))
    return {"kind": "file", "path": str(path)}


def evaluated(config: SweepConfig, seed: int = 0, progress: Any = None) -> Any:
    bench = bench_here(config.for_backbone("tiny"))
    return evaluate(bench.base, bench.tokenizer, bench.heldout, bench.config, bench.ranks, bench.device, seed, progress)


def test_metrics_of_tasks_and_their_mean(make_config: Make, source: dict[str, Any]) -> None:
    sampled = {"source": source, "answer_pattern": r"(\d)", "samples": 4, "max_new_tokens": 12, "problems": 5}
    choice = {"source": source, "scorer": "loglikelihood", "options": "o", "response": "label", "system": None}
    tasks = {"digits": sampled, "choice": choice}
    found = evaluated(make_config(evaluation={"generation": None, "tasks": tasks}))
    metrics, records = found.metrics, found.records
    assert [record["task"] for record in records] == ["digits"] * 20 + ["choice"] * 6
    by_problem = [[r["score"] for r in records[i : i + 4]] for i in range(0, 20, 4)]
    means = [statistics.fmean(scores) for scores in by_problem]
    assert metrics["eval/digits/accuracy"] == pytest.approx(statistics.fmean(means))
    assert metrics["eval/digits/accuracy_se"] == pytest.approx(statistics.stdev(means) / 5**0.5)
    assert metrics["eval/digits/pass_at_4"] == statistics.fmean(any(scores) for scores in by_problem)
    assert metrics["eval/digits/accuracy"] <= metrics["eval/digits/pass_at_2"] <= metrics["eval/digits/pass_at_4"]
    assert {"eval/digits/truncated", "eval/digits/generated_tokens"} <= metrics.keys()
    assert {"eval/choice/accuracy", "eval/choice/accuracy_se", "eval/choice/per_character"} <= metrics.keys()
    assert metrics.keys().isdisjoint({"eval/choice/truncated", "eval/choice/pass_at_1"})
    both = (metrics["eval/digits/accuracy"] + metrics["eval/choice/accuracy"]) / 2
    assert metrics["eval/accuracy"] == pytest.approx(both)
    errors = (metrics["eval/digits/accuracy_se"], metrics["eval/choice/accuracy_se"])
    assert metrics["eval/accuracy_se"] == pytest.approx(math.hypot(*errors) / 2)
    assert asdict(summarised(records)) == {"metrics": {k: metrics[k] for k in metrics if k not in HELDOUT}} | {
        "records": records
    }


HELDOUT = {"eval/nll", "eval/mean_probability", "eval/token_accuracy", "eval/entropy", "eval/calibration_error"}


def test_the_held_out_accuracy_stays_the_main_one(make_config: Make, source: dict[str, Any]) -> None:
    task = {"source": source, "problems": 2, "max_new_tokens": 3}
    alone = evaluated(make_config())
    beside = evaluated(make_config(evaluation={**make_config().evaluation.model_dump(), "tasks": {"t": task}}))
    assert beside.metrics.items() >= alone.metrics.items()
    assert {"eval/t/accuracy", "eval/t/accuracy_se"} <= beside.metrics.keys()
    assert beside.records[: len(alone.records)] == alone.records
    assert {record["task"] for record in alone.records} == {"generation"}


def test_a_stop_text_ends_a_completion(make_config: Make, source: dict[str, Any]) -> None:
    task = {"source": source, "samples": 8, "max_new_tokens": 20}
    plain = evaluated(make_config(evaluation={"generation": None, "tasks": {"t": task}})).records
    stopped = evaluated(make_config(evaluation={"generation": None, "tasks": {"t": task | {"stop": ["a", "7"]}}}))
    assert any("a" in record["completion"] for record in plain)
    for before, after in zip(plain, stopped.records, strict=True):
        ends = [at for stop in "a7" if (at := before["completion"].find(stop)) >= 0]
        assert after["completion"] == before["completion"][: min(ends, default=None)]
        assert after["truncated"] == (before["truncated"] and not ends)


def test_progress_is_told_and_changes_nothing(make_config: Make, source: dict[str, Any]) -> None:
    task = {"source": source, "samples": 2, "max_new_tokens": 4, "batch_size": 1}
    config = make_config(evaluation={"generation": None, "tasks": {"t": task}})
    said: list[Any] = []
    told = evaluated(config, progress=lambda *words: said.append(words))
    assert {(task, total) for task, _, total, _ in said} == {("t", 6)}
    counts = [done for _, done, _, _ in said]
    assert counts == sorted(set(counts))
    assert len(counts) > 1
    assert said[-1][1:] == (6, 6, 0)
    assert all(seconds >= 0 for *_, seconds in said)
    assert told.records == evaluated(config).records


@pytest.mark.parametrize(
    ("changes", "message", "place"),
    [
        ({"scorer": "numeric", "answer_pattern": "#(.)"}, "has no match of answer_pattern", "task.jsonl line 1"),
        ({"max_new_tokens": 128}, "exceed the model's 128 positions", "evaluation.tasks.t.max_new_tokens"),
        ({"prompt": "qestion"}, "field 'qestion' is missing", "task.jsonl line 1"),
        ({"instruction": "{prompt}" + "9" * 130, "shorten": True}, "exceed the model's", "evaluation.tasks.t"),
        (
            {"instruction": "{prompt}" + "9" * 130, "scorer": "loglikelihood", "options": "o", "response": "label"},
            "one of its options have 1.. tokens, and the model 128 positions",
            "evaluation.tasks.t",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(
    make_config: Make, source: dict[str, Any], changes: dict[str, Any], message: str, place: str
) -> None:
    tasks = {"t": {"source": source, **changes}}
    with pytest.raises(InputError, match=message) as error:
        bench_here(make_config(evaluation={"generation": None, "tasks": tasks}).for_backbone("tiny"))
    assert place in error.value.place


def test_a_task_may_be_shortened_to_the_models_positions(make_config: Make, source: dict[str, Any]) -> None:
    task = {"source": source, "max_new_tokens": 4096, "shorten": True, "temperature": 0, "problems": 2}
    found = evaluated(make_config(evaluation={"generation": None, "tasks": {"t": task}}))
    assert max(record["tokens"] for record in found.records) <= 128 - len("1+1?")


def test_the_problems_are_a_part_of_a_trials_identity(make_config: Make, source: dict[str, Any]) -> None:
    """A resumed trial cannot go on with other ones under the same name."""
    config = make_config(evaluation={"generation": None, "tasks": {"t": {"source": source, "max_new_tokens": 3}}})
    first = bench_here(config.for_backbone("tiny"))._data_identity()
    assert first.keys() == {"train", "heldout", "task t"}
    assert bench_here(config.for_backbone("tiny"))._data_identity() == first
    other = config.evaluation.tasks["t"].model_copy(update={"problems": 2})
    changed = config.evaluation.model_copy(update={"tasks": {"t": other}})
    assert bench_here(config.model_copy(update={"evaluation": changed}).for_backbone("tiny"))._data_identity() != first


def test_records_are_scored_anew_without_a_model(make_config: Make, source: dict[str, Any]) -> None:
    task = {"source": source, "answer_pattern": r"(\d)", "samples": 3, "max_new_tokens": 12}
    config = make_config(evaluation={"generation": None, "tasks": {"t": task}})
    records = evaluated(config).records
    same = config.evaluation.tasks["t"]
    assert rescored(records, build_scorer(same, same.source)) == records
    other = same.model_copy(update={"answer_pattern": r"^(\d)"})
    again = rescored(records, build_scorer(other, other.source))
    assert [r["completion"] for r in again] == [r["completion"] for r in records]
    expected = [float(r["completion"][:1] == r["reference"]) for r in records]
    assert [r["score"] for r in again] == expected


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right: list[bool], k: int) -> None:
    k = min(k, len(right))
    draws = [any(chosen) for chosen in itertools.combinations(right, k)]
    assert pass_at(k, right) == pytest.approx(statistics.fmean(draws))


def test_samples_of_one_problem_are_one_cluster() -> None:
    """Samples that agree within their problems say no more than one of them would."""
    records = [
        {"task": "t", "problem": p, "sample": s, "score": float(p % 2), "how": ""} for p in range(8) for s in range(5)
    ]
    one = [record for record in records if record["sample"] == 0]
    assert summarised(records).metrics["eval/t/accuracy_se"] == summarised(one).metrics["eval/t/accuracy_se"]
