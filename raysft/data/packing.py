"""Which samples share a micro-batch: rows of a token budget, the same number of them for every rank."""

import heapq

import numpy as np


def deal(lengths: np.ndarray, budget: int, ranks: int = 1, padded: bool = False) -> list[list[np.ndarray]]:
    """Micro-batches of each rank: [rank][micro-batch] -> indices into `lengths`, the longest sample first.

    lengths: tokens of each sample, int64 [samples], a multiple of `ranks` many; padded: each costs what the longest
    does. No micro-batch has more than `budget`
    tokens, but one of a single longer sample. Rows have no padding, so they need not be full: there are as few as hold
    the samples, and these are spread over them evenly (each, the longest first, to the row with the fewest tokens),
    so that ranks which wait for each other have the same work. A function of its arguments alone.

    Raises ValueError where ranks could not have equally many micro-batches.
    """
    if len(lengths) == 0 or len(lengths) % ranks:
        raise ValueError(f"{len(lengths)} samples cannot be dealt to {ranks} ranks")
    if padded:
        lengths = np.full_like(lengths, lengths.max())
    longest_first = np.argsort(-lengths, kind="stable")
    room = max(budget, int(lengths.max()))
    count = -(-int(lengths.sum()) // (room * ranks)) * ranks
    while (rows := _spread(lengths, longest_first, count, room)) is None:
        count += ranks
    rows.sort(key=lambda row: -int(lengths[row].sum()))
    return [rows[rank::ranks] for rank in range(ranks)]


def _spread(lengths: np.ndarray, longest_first: np.ndarray, count: int, room: int) -> list[np.ndarray] | None:
    """The samples in `count` rows; None where one would get more than `room` tokens."""
    rows: list[list[int]] = [[] for _ in range(count)]
    fill = [(0, row) for row in range(count)]
    for sample in longest_first.tolist():
        tokens, row = fill[0]
        tokens += int(lengths[sample])
        if tokens > room:
            return None
        rows[row].append(sample)
        heapq.heapreplace(fill, (tokens, row))
    return [np.array(row, dtype=np.int64) for row in rows]
