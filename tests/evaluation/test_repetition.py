"""The share of repeated runs of four tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.evaluation.repetition import repetition


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], 0),
        ([1, 1, 1], 0),
        ([1, 2, 3, 4], 0),
        ([1, 2, 3, 4, 5, 1, 2, 3], 0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([7] * 103, 99 / 100),
        ([1, 2] * 50, 95 / 97),
    ],
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


@given(st.lists(st.integers(0, 2), max_size=30))
def test_each_run_that_stood_before_counts_once(tokens: list[int]) -> None:
    runs = [tokens[at : at + 4] for at in range(len(tokens) - 3)]
    again = sum(run in runs[:at] for at, run in enumerate(runs))
    assert repetition(tokens) == pytest.approx(again / len(runs) if runs else 0)
