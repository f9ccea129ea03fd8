import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.data.batch import Collate, Sample
from raysft.objectives import IGNORE_INDEX

some_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def samples_of(lengths: list[int]) -> list[Sample]:
    """The second half of each is supervised."""
    return [(np.arange(n) + 100, np.where(np.arange(n) < n // 2, IGNORE_INDEX, np.arange(n) + 100)) for n in lengths]


@given(lengths=some_lengths, pad_id=st.integers(0, 99))
def test_padded_samples_keep_their_tokens_and_padding_is_never_seen(lengths: list[int], pad_id: int) -> None:
    samples = samples_of(lengths)
    batch = Collate(pad_id, packed=False)(samples)
    for tensor in (batch.input_ids, batch.labels):
        assert tensor.shape == (len(lengths), max(lengths))
        assert tensor.dtype == torch.long
    for row, (tokens, labels) in enumerate(samples):
        n = len(tokens)
        assert batch.input_ids[row, :n].tolist() == tokens.tolist()
        assert batch.labels[row, :n].tolist() == labels.tolist()
        assert set(batch.input_ids[row, n:].tolist()) <= {pad_id}
        assert set(batch.labels[row, n:].tolist()) <= {IGNORE_INDEX}
    assert batch.lengths == tuple(lengths)
    assert batch.sample_ids().tolist() == [[row] * max(lengths) for row in range(len(lengths))]


@given(lengths=some_lengths)
def test_packed_samples_lie_one_behind_the_other(lengths: list[int]) -> None:
    """No sample's first token is a label: what precedes it in the row is another sample."""
    samples = samples_of(lengths)
    batch = Collate(0, packed=True)(samples)
    assert batch.input_ids.shape == batch.labels.shape == (1, sum(lengths))
    assert batch.input_ids[0].tolist() == [token for tokens, _ in samples for token in tokens]
    expected = [label for _, labels in samples for label in [IGNORE_INDEX, *labels[1:]]]
    assert batch.labels[0].tolist() == expected
    assert batch.sample_ids().tolist() == [[row for row, n in enumerate(lengths) for _ in range(n)]]
    assert samples[0][1][0] in (IGNORE_INDEX, 100)  # the samples themselves are left alone


def test_to_moves_every_tensor() -> None:
    batch = Collate(0, packed=True)(samples_of([3])).to("meta")
    assert {t.device.type for t in (batch.input_ids, batch.labels)} == {"meta"}
    assert batch.lengths == (3,)
