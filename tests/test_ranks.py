"""Ranks alone, and the same questions asked of two real processes over gloo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from raysft.ranks import Ranks


def place(rank: int, world: int) -> Ranks:
    """What `share` sees on a rank: it asks nobody."""
    ranks = Ranks()
    ranks.rank, ranks.world = rank, world
    return ranks


def test_one_process_is_a_group_of_one() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.world, ranks.active) == (0, 1, False)
    assert ranks.gather({"a": 1}) == [{"a": 1}]
    assert ranks.broadcast("value") == "value"
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    ranks.barrier()
    values = torch.tensor([1.0, 2.0])
    total = ranks.sum(values)
    total += 1
    assert values.tolist() == [1.0, 2.0]


@given(st.lists(st.integers()), st.integers(1, 8))
def test_shares_are_every_item_once_and_alike_in_size(items: list[int], world: int) -> None:
    shares = [place(rank, world).share(items) for rank in range(world)]
    assert [shares[i % world][i // world] for i in range(len(items))] == items
    assert sum(map(len, shares)) == len(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def answers() -> dict[str, Any]:
    """What a rank of a group gets to each question; run in every process of the group."""
    ranks = Ranks()
    values = torch.tensor([1.0, 10.0], dtype=torch.float64) * (ranks.rank + 1)
    total = ranks.sum(values)
    ranks.barrier()
    return {
        "place": [ranks.rank, ranks.world, ranks.active],
        "sum": total.tolist(),
        "unchanged": values.tolist(),
        "integers": ranks.sum(torch.tensor(2**40 + ranks.rank)).item(),
        "gather": ranks.gather({"rank": ranks.rank, "text": "x" * ranks.rank}),
        "broadcast": ranks.broadcast({"from": ranks.rank}),
        "nothing": ranks.broadcast(None if ranks.rank == 0 else "something"),
        "share": ranks.share(list("abcde")),
    }


def test_two_processes(tmp_path: Path) -> None:
    program = [sys.executable, __file__, str(tmp_path / "rendezvous")]
    processes = [subprocess.Popen([*program, str(r)], stdout=subprocess.PIPE, text=True) for r in range(2)]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
    assert (first.pop("place"), second.pop("place")) == ([0, 2, True], [1, 2, True])
    assert (first.pop("unchanged"), second.pop("unchanged")) == ([1.0, 10.0], [2.0, 20.0])
    assert (first.pop("share"), second.pop("share")) == (["a", "c", "e"], ["b", "d"])
    assert first == second
    assert first == {
        "sum": [3.0, 30.0],
        "integers": 2**41 + 1,
        "gather": [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}],
        "broadcast": {"from": 0},
        "nothing": None,
    }


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
    print(json.dumps(answers()))
    torch.distributed.destroy_process_group()
