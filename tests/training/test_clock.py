import time
from contextlib import suppress

import pytest

from raysft.training.clock import OPEN_SPANS, Clock


def test_the_inner_phases_time_is_not_the_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    now = 1.0  # in no phase
    with clock("forward"):
        now = 3.0
        with clock("head"):
            now = 6.0
        now = 7.0
    with clock("head"):
        now = 8.0
    now = 10.0
    assert clock.shares() == {"time/forward": 0.3, "time/head": 0.4, "time/seconds": 10.0}
    with clock("forward"):
        now = 20.0
    assert clock.shares() == {"time/forward": 0.65, "time/head": 0.2, "time/seconds": 20.0}


def test_a_phase_that_fails_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    with suppress(ValueError), clock("backward"):
        now = 1.0
        raise ValueError
    now = 4.0
    assert clock.shares() == {"time/backward": 0.25, "time/seconds": 4.0}


def test_spans_do_not_pile_up() -> None:
    clock = Clock()
    for _ in range(3 * OPEN_SPANS):
        with clock("data"):
            pass
    assert len(clock._spans) <= OPEN_SPANS
    assert 0 < clock.shares()["time/data"] <= 1
