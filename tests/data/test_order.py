import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.data.order import SampleOrder

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63)


@given(n=sizes, batch=sizes, seed=seeds, steps=st.integers(1, 12))
def test_every_epoch_holds_each_sample_once(n: int, batch: int, seed: int, steps: int) -> None:
    order = SampleOrder(n, batch, seed)
    stream = np.concatenate([order.at(step) for step in range(steps)])
    assert stream.dtype == np.int64
    assert len(stream) == steps * batch
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))
    rest = stream[len(stream) // n * n :]
    assert len(set(rest)) == len(rest)


@given(n=sizes, batch=sizes, seed=seeds, step=st.integers(0, 10**9))
def test_a_step_does_not_depend_on_the_steps_before_it(n: int, batch: int, seed: int, step: int) -> None:
    order = SampleOrder(n, batch, seed)
    for earlier in (0, 7, step + 1):
        order.at(earlier)
    assert np.array_equal(order.at(step), SampleOrder(n, batch, seed).at(step))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    order = SampleOrder(1000, 1000, 3)
    assert not np.array_equal(order.at(0), order.at(1))
    assert not np.array_equal(order.at(0), SampleOrder(1000, 1000, 4).at(0))


def test_the_order_of_a_seed_stays_the_same_between_versions() -> None:
    assert SampleOrder(8, 8, 0).at(0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        SampleOrder(0, 4, 0)
