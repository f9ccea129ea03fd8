"""Earlier studies as evidence, read from real stores that raysft itself has written."""

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

from raysft.advisor import Evidence
from raysft.config import SweepConfig, TrialConfig
from raysft.evidence import earlier_studies
from raysft.objectives import Power, build
from raysft.tracking import Tracking, tracking_uri

Make = Callable[..., SweepConfig]
Ended = tuple[Any, float | None, str]  # objective, accuracy, status


def tracked(
    config: SweepConfig, capability: float | None, trials: list[Ended], rates: tuple[float, ...] = (1e-3,)
) -> None:
    """One study of a sweep, as its driver writes it; the k-th trial has the k-th of the rates, over and over."""
    study = Tracking(config).start_study(config.for_backbone(config.backbones[0].name))
    if capability is not None:
        study.log_capability({"mean_probability": capability})
    for number, (objective, accuracy, status) in enumerate(trials):
        name = f"{number:04d}"
        role = "confirm" if status == "CONFIRM" else "search"
        rate = rates[number % len(rates)]
        study.start_trial(
            name, TrialConfig(objective=objective, learning_rate=rate, seed=0).model_copy(update={"role": role})
        )
        if accuracy is not None:
            study.log_points(name, [{"step": 5, "time": time.time(), "eval/accuracy": accuracy}])
        study.end_trial(name, "FINISHED" if status == "CONFIRM" else status)  # type: ignore[arg-type]
    study.end("FINISHED")


@pytest.fixture
def asking(make_config: Make) -> SweepConfig:
    return make_config(name="asking")


def test_a_store_with_nothing_else_gives_nothing(make_config: Make, asking: SweepConfig) -> None:
    tracked(asking, 0.4, [(Power(), 0.2, "FINISHED"), (Power(exponent=1), 0.4, "FINISHED")])
    assert earlier_studies(asking) == ([], None), "its own experiment is no evidence"


def test_studies_of_other_experiments_are_read(make_config: Make, asking: SweepConfig) -> None:
    baseline = Power(threshold=0.2)
    tracked(
        make_config(name="first"),
        0.4,
        [
            (Power(), 0.2, "FINISHED"),
            (Power(exponent=0.5), 0.3, "FINISHED"),
            (Power(exponent=0.5), 0.6, "FINISHED"),
            (Power(exponent=0.5), 0.9, "FAILED"),
            (Power(exponent=0.5), 0.8, "CONFIRM"),
            (Power(exponent=1), None, "FINISHED"),
            (Power(exponent=2), 0.7, "KILLED"),
            (Power(exponent=1, final_exponent=2), 0.9, "FINISHED"),
            (Power(exponent=1, threshold=0.1), 0.9, "FINISHED"),
            (build("dft"), 0.9, "FINISHED"),
            (baseline, 0.25, "FINISHED"),
        ],
        rates=(1e-3, 1e-4),
    )
    tracked(make_config(name="second"), 0.1, [(Power(), 0.2, "FINISHED"), (Power(exponent=0.25), 0.1, "FINISHED")])
    found, note = earlier_studies(asking)
    assert note is None
    assert sorted(found, key=lambda study: study.name) == [
        Evidence("first/tiny", 0.4, {0: 0.2, 0.5: 0.6}, 0.25),
        Evidence("second/tiny", 0.1, {0: 0.2, 0.25: 0.1}),
    ]


def test_what_cannot_be_compared_is_left_out(make_config: Make, asking: SweepConfig) -> None:
    tracked(make_config(name="unprobed"), None, [(Power(), 0.2, "FINISHED"), (Power(exponent=1), 0.4, "FINISHED")])
    tracked(make_config(name="alone"), 0.4, [(Power(), 0.2, "FINISHED"), (Power(), 0.3, "FINISHED")])
    assert earlier_studies(asking) == ([], None)


def test_a_missing_store_gives_nothing_and_a_broken_one_a_note(make_config: Make, asking: SweepConfig) -> None:
    assert earlier_studies(asking) == ([], None)
    assert not asking.output.exists(), "reading makes nothing"
    asking.output.mkdir(parents=True)
    file = asking.output / "mlflow.db"
    file.write_text("no database " * 1000)
    found, note = earlier_studies(asking)
    assert found == []
    assert "cannot be read" in str(note)
    file.unlink()
    tracked(make_config(name="first"), 0.4, [(Power(), 0.2, "FINISHED"), (Power(exponent=1), 0.4, "FINISHED")])
    with sqlite3.connect(file) as database:
        database.execute("drop table metrics")
        database.execute("drop table latest_metrics")
    found, note = earlier_studies(asking)
    assert found == []
    assert "cannot be read" in str(note)


def test_a_server_that_does_not_answer_gives_a_note(make_config: Make) -> None:
    config = make_config(tracking={"uri": "http://127.0.0.1:9"})
    started = time.monotonic()
    assert tracking_uri(config) == "http://127.0.0.1:9"
    found, note = earlier_studies(config)
    assert (found, "cannot be read" in str(note)) == ([], True)
    assert time.monotonic() - started < 20
