import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.data.batch import Batch, collate
from raysft.objectives import IGNORE_INDEX


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), pad_id=st.integers(0, 99))
def test_samples_keep_their_tokens_and_padding_is_never_seen(lengths: list[int], pad_id: int) -> None:
    samples = [(np.arange(n) + 100, np.where(np.arange(n) < n // 2, IGNORE_INDEX, np.arange(n) + 100)) for n in lengths]
    batch = collate(samples, pad_id)
    for tensor in (batch.input_ids, batch.labels, batch.attention_mask):
        assert tensor.shape == (len(lengths), max(lengths))
        assert tensor.dtype == torch.long
    for row, (tokens, labels) in enumerate(samples):
        n = len(tokens)
        assert batch.input_ids[row, :n].tolist() == tokens.tolist()
        assert batch.labels[row, :n].tolist() == labels.tolist()
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (max(lengths) - n)
        assert set(batch.input_ids[row, n:].tolist()) <= {pad_id}
        assert set(batch.labels[row, n:].tolist()) <= {IGNORE_INDEX}


def test_to_moves_every_tensor() -> None:
    batch = collate([(np.arange(3), np.arange(3))], pad_id=0).to("meta")
    assert isinstance(batch, Batch)
    assert {t.device.type for t in (batch.input_ids, batch.labels, batch.attention_mask)} == {"meta"}
