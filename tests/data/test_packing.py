import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.data.packing import deal

some_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths=some_lengths, budget=st.integers(1, 200), ranks=st.integers(1, 4))
def test_every_sample_is_dealt_once_within_the_budget(lengths: list[int], budget: int, ranks: int) -> None:
    tokens = np.array(lengths * ranks)
    dealt = deal(tokens, budget, ranks)
    assert len(dealt) == ranks
    assert len({len(rows) for rows in dealt}) == 1  # ranks that wait for each other need equally many
    rows = [row for rank in dealt for row in rank]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(tokens)))
    assert all(row.dtype == np.int64 and len(row) for row in rows)
    assert all(tokens[row].sum() <= budget or len(row) == 1 for row in rows if tokens.max() <= budget)
    assert all(tokens[row].sum() <= max(budget, tokens.max()) for row in rows)
    assert all((np.diff(tokens[row]) <= 0).all() for row in rows)


@given(lengths=some_lengths, budget=st.integers(1, 200))
def test_micro_batches_are_few(lengths: list[int], budget: int) -> None:
    """Two that fitted into one would be too many: at most twice the least number, and one."""
    tokens = np.array(lengths)
    room = max(budget, tokens.max())
    (rows,) = deal(tokens, budget)
    assert len(rows) <= 2 * -(-tokens.sum() // room) + 1


@given(lengths=some_lengths, budget=st.integers(1, 200), ranks=st.integers(1, 4))
def test_padded_rows_keep_to_the_budget_with_their_padding(lengths: list[int], budget: int, ranks: int) -> None:
    tokens = np.array(lengths * ranks)
    for row in (row for rank in deal(tokens, budget, ranks, padded=True) for row in rank):
        assert len(row) == 1 or len(row) * tokens.max() <= max(budget, tokens.max())


def test_ranks_that_wait_for_each_other_have_like_work() -> None:
    lengths = np.random.default_rng(0).lognormal(5.3, 0.35, 256).astype(np.int64)
    dealt = deal(lengths, 4096, 4)
    for rows in zip(*dealt, strict=True):
        fill = [lengths[row].sum() for row in rows]
        assert max(fill) < 1.02 * min(fill)
    assert len(dealt[0]) == -(-lengths.sum() // (4 * 4096))


def test_a_deal_stays_the_same_between_versions() -> None:
    found = deal(np.array([5, 1, 4, 3, 3, 2]), 10, 2)
    assert [[row.tolist() for row in rank] for rank in found] == [[[0, 4, 1]], [[2, 3, 5]]]


@pytest.mark.parametrize("samples", [0, 3])
def test_samples_that_cannot_be_dealt_are_refused(samples: int) -> None:
    with pytest.raises(ValueError, match="cannot be dealt to 2 ranks"):
        deal(np.ones(samples, dtype=np.int64), 8, 2)
