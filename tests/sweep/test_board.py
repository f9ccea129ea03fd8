"""The board alone, on plain asyncio: who gets which trial, and what becomes of it when a group breaks."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from raysft.sweep import board as module
from raysft.sweep.board import Board, Report, Wait

CONFIG = {"name": "tiny"}  # the board only hands it on


def run(scenario: Callable[[Board], Awaitable[None]], max_failures: int = 1, maximise: bool = True) -> None:
    async def main() -> None:
        board = Board(max_failures)
        await board.open(CONFIG, maximise)
        await asyncio.wait_for(scenario(board), timeout=10)

    asyncio.run(main())


def test_trials_are_taken_in_order_and_reports_come_back() -> None:
    async def scenario(board: Board) -> None:
        await board.submit("a", "job a")
        await board.submit("b", "job b")
        assert await board.take((0, 0), 1) == "job a"
        assert await board.take((1, 0), 1) == "job b"
        await board.report((0, 0), "a", Report("progress", 5, {"eval/nll": 2.0}))
        await board.report((0, 0), "a", Report("finished", 10, {"eval/nll": 1.0}))
        assert [r.kind for r in await board.reports("a", 0)] == ["progress", "finished"]
        assert [r.step for r in await board.reports("a", 1)] == [10]
        await board.submit("c", "job c")
        assert await board.take((0, 0), 1) == "job c"

    run(scenario)


def test_waiting_reader_is_woken() -> None:
    async def scenario(board: Board) -> None:
        await board.submit("a", "job")
        reader = asyncio.create_task(board.reports("a", 0))
        await board.take((0, 0), 1)
        assert not reader.done()
        await board.report((0, 0), "a", Report("finished"))
        assert [r.kind for r in await reader] == ["finished"]

    run(scenario)


def test_submitting_again_changes_nothing() -> None:
    async def scenario(board: Board) -> None:
        await board.submit("a", "job")
        await board.take((0, 0), 1)
        await board.submit("a", "job")
        assert not board.queue

    run(scenario)


def test_a_failed_trial_is_not_run_again() -> None:
    """Tune repeats a failed trial; what fails for its own reasons would only fail again."""

    async def scenario(board: Board) -> None:
        await board.submit("a", "job")
        await board.take((0, 0), 1)
        await board.report((0, 0), "a", Report("failed", reason="the loss is nan"))
        await board.submit("a", "job")
        assert not board.queue
        assert [r.reason for r in await board.reports("a", 0)] == ["the loss is nan"]

    run(scenario)


def test_a_paused_trial_frees_its_group_and_is_taken_again_when_it_goes_on() -> None:
    async def scenario(board: Board) -> None:
        await board.submit("a", "job a")
        await board.submit("b", "job b")
        await board.take((0, 0), 1)
        await board.report((0, 0), "a", Report("paused", 4, {"eval/nll": 2.0}))
        assert await board.take((0, 0), 1) == "job b"
        await board.submit("a", "job a, further")
        await board.report((0, 0), "b", Report("finished", 8))
        assert await board.take((0, 0), 1) == "job a, further"
        await board.report((0, 0), "a", Report("finished", 8))
        assert [r.kind for r in await board.reports("a", 0)] == ["finished"]

    run(scenario)


def test_broken_group_gets_its_trial_back_until_the_limit() -> None:
    async def scenario(board: Board) -> None:
        await board.wanted(0, with_work=False)
        await board.submit("a", "job a")
        await board.submit("b", "job b")
        assert await board.take((0, 0), 1) == "job a"
        assert await board.group_broke(0, "killed")
        assert await board.take((0, 0), 1) == "job a"
        assert await board.group_broke(0, "killed again")
        (report,) = await board.reports("a", 0)
        assert report.kind == "failed"
        assert "broke 2 times: killed again" in report.reason
        assert await board.take((0, 0), 1) == "job b"

    run(scenario, max_failures=1)


def test_study_is_refused_when_no_group_can_start() -> None:
    async def scenario(board: Board) -> None:
        for slot in (0, 1):
            await board.wanted(slot, with_work=False)
        await board.submit("a", "job")
        assert await board.group_broke(0, "no such module")
        assert not await board.group_broke(0, "no such module")
        assert not (await board.wanted(0, with_work=False))
        assert await board.group_broke(1, "no such module")
        assert not await board.group_broke(1, "no such module")
        (report,) = await board.reports("a", 0)
        assert "cannot start: no such module" in report.reason
        assert await board.measurement() == (None, board.refusal)
        await board.submit("late", "job")
        assert (await board.reports("late", 0))[0].kind == "failed"

    run(scenario)


def test_cancelled_trial_is_dropped_from_the_queue_or_stopped_in_its_group() -> None:
    async def scenario(board: Board) -> None:
        await board.submit("a", "job a")
        await board.submit("b", "job b")
        await board.take((0, 0), 1)
        watched = asyncio.create_task(board.cancelled("a"))
        await board.cancel("b")
        assert [r.kind for r in await board.reports("b", 0)] == ["dropped"]
        await asyncio.sleep(0)
        assert not watched.done()
        await board.cancel("a", "save")
        assert await watched == "save"
        await board.report((0, 0), "a", Report("saved", 3))
        assert (await board.reports("a", 0))[-1].kind == "saved"
        await board.cancel("unknown")

    run(scenario)


def test_closing_ends_waiting_groups() -> None:
    async def scenario(board: Board) -> None:
        taking = asyncio.create_task(board.take((0, 0), 1))
        await asyncio.sleep(0)
        await board.close()
        assert await taking is None
        assert not await board.wanted(0, with_work=True)

    run(scenario)


def test_idle_group_is_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_SECONDS", 0.01)

    async def scenario(board: Board) -> None:
        assert await board.take((0, 0), 1) == Wait()
        await board.submit("a", "job")
        assert await board.take((0, 0), 1) == "job"

    run(scenario)


def test_one_group_probes_and_a_restarted_one_probes_again() -> None:
    async def scenario(board: Board) -> None:
        assert await board.needs_probe(1, 1)
        assert not await board.needs_probe(0, 1)
        assert await board.needs_probe(1, 1)
        await board.set_measurement("measured")
        assert not await board.needs_probe(1, 1)
        assert await board.measurement() == ("measured", "")

    run(scenario)


@pytest.mark.parametrize(
    ("maximise", "expected"), [(True, [True, False, True, True]), (False, [True, True, False, False])]
)
def test_best_so_far(maximise: bool, expected: list[bool]) -> None:
    async def scenario(board: Board) -> None:
        assert [await board.improves(v) for v in (0.5, 0.4, 0.6, 0.6)] == expected

    run(scenario, maximise=maximise)


def test_a_broken_group_gives_every_lane_its_trial_back() -> None:
    async def scenario(board: Board) -> None:
        for trial_id in "abc":
            await board.submit(trial_id, f"job {trial_id}")
        seats = [(0, 0), (0, 1), (1, 0)]
        assert [await board.take(seat, 1) for seat in seats] == ["job a", "job b", "job c"]
        assert await board.group_broke(0, "out of memory")
        assert [board.entries[trial_id].failures for trial_id in "abc"] == [1, 1, 0]
        assert [await board.take(seat, 1) for seat in seats] == ["job a", "job b", "job c"]
        assert await board.group_broke(0, "out of memory")
        assert [board.entries[trial_id].ended for trial_id in "abc"] == [True, True, False]

    run(scenario)


def test_groups_go_on_with_the_next_study() -> None:
    async def scenario(board: Board) -> None:
        assert await board.study(0) == (1, CONFIG)
        await board.submit("a", "job a")
        await board.take((0, 0), 1)
        assert await board.improves(0.9)
        taking = asyncio.create_task(board.take((1, 0), 1))
        await board.report((0, 0), "a", Report("finished"))
        await board.end_study()
        assert await taking is None
        waiting = asyncio.create_task(board.study(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.open({"name": "next"}, False)
        assert await waiting == (2, {"name": "next"})
        assert await board.improves(5.0), "nothing of the study before is remembered"
        assert await board.needs_probe(0, 2)
        await board.submit("a", "another job a")
        assert await board.take((0, 0), 2) == "another job a"
        await board.close()
        assert await board.study(2) is None

    run(scenario)


def test_a_group_that_was_late_for_its_study_changes_nothing_in_the_next() -> None:
    async def scenario(board: Board) -> None:
        await board.end_study()
        await board.open({"name": "next"}, True)
        await board.submit("a", "job")
        assert not await board.needs_probe(0, 1)
        await board.refuse("cannot be read", 1)
        assert await board.take((0, 0), 1) is None
        assert await board.take((0, 0), 2) == "job"

    run(scenario)


def test_who_waits_long_for_a_study_hears_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_SECONDS", 0.01)

    async def scenario(board: Board) -> None:
        assert await board.study(1) == Wait()

    run(scenario)


def test_groups_without_a_trial_end_once_all_trials_of_the_last_study_have_come() -> None:
    async def scenario(board: Board) -> None:
        await board.open(CONFIG, True, expected=2, last=True)
        await board.submit("a", "job a")
        assert await board.take((0, 0), 2) == "job a"
        idle = asyncio.create_task(board.take((1, 0), 2))
        await asyncio.sleep(0)
        assert not idle.done(), "b is still to come"
        await board.submit("b", "job b")
        assert await idle == "job b"
        assert await board.take((2, 0), 2) is None
        assert await board.study(2) is None
        assert [await board.wanted(slot, False) for slot in (0, 1, 2)] == [True, True, False]
        assert await board.group_broke(0, "a worker died"), "its trial is still to be run"
        assert await board.take((0, 0), 2) == "job a"

    run(scenario)


def test_before_another_study_they_wait_for_it() -> None:
    async def scenario(board: Board) -> None:
        await board.open(CONFIG, True, expected=1, last=False)
        await board.submit("a", "job a")
        await board.take((0, 0), 2)
        assert await board.take((1, 0), 2) is None
        waiting = asyncio.create_task(board.study(2))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await board.wanted(1, False)
        await board.open(CONFIG, True)
        assert await waiting == (3, CONFIG)

    run(scenario)


def test_groups_that_lose_their_nodes_at_the_start_are_started_as_often_as_trials() -> None:
    async def scenario(board: Board) -> None:
        await board.wanted(0, False)
        await board.submit("a", "job")
        assert [await board.group_broke(0, "the node was lost") for _ in range(5)] == [True] * 4 + [False]
        assert (await board.reports("a", 0))[0].reason == "the workers cannot start: the node was lost"

    run(scenario, max_failures=5)
