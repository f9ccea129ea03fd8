"""The searcher: given trials first, budgets not mixed, promotions and resumes by the ledger."""

import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from raysft.advisor import Advice, Choice, advise
from raysft.capability import Capability
from raysft.config import PAPER_BASELINES, SearchConfig, SpaceConfig, TrialConfig
from raysft.config.grid import points
from raysft.objectives import Power
from raysft.objectives.auto import Auto
from raysft.sweep.ledger import Ledger, Status, TrialRow
from raysft.sweep.search import StudySearch
from raysft.sweep.space import Space

SEARCH = SearchConfig(metric="eval/nll", trials=16)
RATE = 1e-3


def capability() -> Capability:
    """A base model whose p is uniform on [0, 1]."""
    return Capability(
        mean_probability=0.5,
        mean_logp=-1.0,
        share_above=0.45,
        tokens=1000,
        samples=10,
        quantiles=[i / 100 for i in range(101)],
        histogram=[50] * 20,
    )


def trial_of(objective: Power) -> TrialConfig:
    return TrialConfig(objective=objective, learning_rate=RATE, seed=0, role="baseline")


def search_over(
    space: SpaceConfig,
    given_trials: list[TrialConfig] | None = None,
    search: SearchConfig = SEARCH,
    ledger: Ledger | None = None,
    advice: Advice | None = None,
    grid: list[TrialConfig] | None = None,
) -> StudySearch:
    """A searcher of a study of its own, or of one whose ledger is given."""
    with tempfile.TemporaryDirectory() as folder:
        searcher = StudySearch(
            Space(space, RATE, seed=0),
            given_trials or [],
            search,
            capability(),
            ledger or Ledger(Path(folder)),
            advice=advice,
            grid=grid,
        )
    return searcher


def suggested(searcher: StudySearch, name: str) -> TrialConfig:
    return TrialConfig.model_validate((searcher.suggest(name) or {})["trial"])


def finished(value: float, step: int = 10) -> dict[str, Any]:
    return {"eval/nll": value, "step": step, "kind": "finished"}


def paused(value: float, step: int) -> dict[str, Any]:
    return {"eval/nll": value, "step": step, "kind": "paused"}


def test_given_trials_come_first_and_unchanged() -> None:
    searcher = search_over(
        SpaceConfig(exponent={"low": 0.1, "high": 5, "log": True}), [trial_of(b) for b in PAPER_BASELINES]
    )
    first = [suggested(searcher, str(i)) for i in range(4)]
    assert [t.objective for t in first] == list(PAPER_BASELINES)
    assert {t.role for t in first} == {"baseline"}
    later = suggested(searcher, "4")
    assert later.role == "search"
    assert 0.1 <= later.objective.exponent <= 5


def test_baselines_inside_the_space_teach_the_sampler_and_others_do_not() -> None:
    space = SpaceConfig(exponent={"low": 0.5, "high": 5}, threshold={"low": 0, "high": 0.5}, keep=["above", "below"])
    searcher = search_over(space, [trial_of(b) for b in PAPER_BASELINES])
    for i in range(4):
        searcher.suggest(str(i))
        searcher.on_trial_complete(str(i), finished(float(i)))
    (told,) = searcher.study().trials  # only -p: exponents 0 and 10 are outside
    assert told.params == {"exponent": 1.0, "thresholded": False}
    assert told.value == 1.0


def test_an_interval_is_searched_at_both_ends() -> None:
    space = SpaceConfig(threshold={"low": 0, "high": 0.4}, upper={"low": 0.5, "high": 1}, threshold_optional=False)
    searcher = search_over(space)
    for i in range(3):
        trial = suggested(searcher, str(i))
        assert 0 <= trial.objective.threshold <= 0.4 < 0.5 <= trial.objective.upper <= 1
        assert searcher.study().trials[i].params.keys() == {"exponent", "threshold", "upper"}
        searcher.on_trial_complete(str(i), finished(float(i)))


def test_threshold_baseline_is_told_as_its_quantile() -> None:
    space = SpaceConfig(
        exponent=0, threshold={"low": 0, "high": 1}, threshold_unit="quantile", threshold_optional=False
    )
    searcher = search_over(space, [trial_of(PAPER_BASELINES[3])])
    searcher.suggest("a")
    searcher.on_trial_complete("a", finished(1.0))
    (told,) = searcher.study().trials
    assert told.params == pytest.approx({"threshold": 0.2}, abs=0.01)


def test_a_failed_trial_is_unknown_and_one_without_a_number_bad() -> None:
    searcher = search_over(SpaceConfig(exponent={"low": 0.5, "high": 5}))
    for name in "abc":
        searcher.suggest(name)
    assert [t.state for t in searcher.study().trials] == [TrialState.RUNNING] * 3
    searcher.on_trial_complete("a", finished(1.5))
    searcher.on_trial_complete("b", None, error=True)
    searcher.on_trial_complete("c", finished(float("nan")))
    first, last = searcher.study().trials
    assert (first.state, first.value) == (TrialState.COMPLETE, 1.5)
    assert (last.state, last.value, last.intermediate_values) == (TrialState.PRUNED, None, {})


HALVING = SearchConfig(metric="eval/nll", trials=4, asha={"grace_period": 4, "reduction_factor": 2})


def test_a_paused_trial_is_pruned_at_its_rung_until_it_has_finished() -> None:
    """The sampler never takes a value of one budget for one of another, nor a paused trial for one that runs."""
    searcher = search_over(NARROW, search=HALVING)
    for name in "ab":
        assert searcher.suggest(name)["until"] == 4
    searcher.on_trial_complete("a", paused(1.0, 4))
    searcher.on_trial_complete("b", paused(2.0, 4))
    promoted = searcher.suggest("c")
    assert (promoted["trial_id"], promoted["until"]) == ("0000", 8)
    assert searcher.ledger.promoted("0000") == 8
    searcher.on_trial_result("c", {"eval/nll": 0.9, "step": 6, "kind": "progress"})
    told = searcher.study().trials
    assert [(t.state, t.intermediate_values) for t in told] == [
        (TrialState.PRUNED, {4: 1.0}),
        (TrialState.PRUNED, {4: 2.0}),
    ]
    searcher.on_trial_complete("c", finished(0.5, 7))
    told = searcher.study().trials
    assert [(t.state, t.value) for t in told] == [(TrialState.COMPLETE, 0.5), (TrialState.PRUNED, 2.0)]


def test_a_free_slot_promotes_before_it_begins_and_the_search_ends_by_itself() -> None:
    searcher = search_over(NARROW, [trial_of(Power(exponent=1))], HALVING)
    begun = [searcher.suggest(name) for name in ("baseline", "a", "b", "c", "d")]
    assert [params["until"] for params in begun] == [None, 4, 4, 4, 4]
    assert searcher.suggest("nothing") is None
    searcher.on_trial_result("baseline", {"eval/nll": 5.0, "step": 4, "kind": "progress"})
    for number, name in enumerate("abcd"):
        searcher.on_trial_complete(name, paused(number, 4))
    assert [searcher.suggest(name)["trial_id"] for name in "ef"] == ["0001", "0002"]
    searcher.on_trial_complete("e", None, error=True)
    searcher.on_trial_complete("f", paused(1.0, 8))
    assert searcher.suggest("g") == {**begun[2], "until": 16}, "it is the only one in its rung, and none will come"
    searcher.on_trial_complete("g", finished(1.0, 10))
    assert searcher.suggest("nothing") is None, "the baseline still runs"
    searcher.on_trial_complete("baseline", finished(4.0, 10))
    assert not searcher.over
    assert searcher.suggest("nothing") == StudySearch.FINISHED
    assert searcher.over
    assert searcher.paused == {"0003", "0004"}


def test_nobody_goes_on_for_want_of_others_while_a_better_one_may_come() -> None:
    searcher = search_over(NARROW, search=HALVING.model_copy(update={"trials": 2}))
    for name in "ab":
        searcher.suggest(name)
    searcher.on_trial_complete("a", paused(2.0, 4))
    assert searcher.suggest("nothing") is None
    searcher.on_trial_complete("b", paused(1.0, 4))
    assert searcher.suggest("c")["trial_id"] == "0001"


def test_a_resumed_search_knows_who_is_paused_and_who_was_promoted(tmp_path: Path) -> None:
    """Paused trials wait on with their values, promoted ones go on to where they were sent; nobody begins anew."""
    ledger = Ledger(tmp_path)
    search = HALVING.model_copy(update={"trials": 6})
    searcher = search_over(NARROW, GIVEN[:1], search, ledger)
    for name in "-abcdef":
        searcher.suggest(name)
    rows = ledger.rows()
    for number, values in enumerate(({4: 9.0}, {4: 1.0}, {4: 2.0}, {4: 3.0}, {4: 4.0}, {2: 5.0}, {2: 6.0})):
        write(ledger, rows[number], values)
    ledger.promote("0001", 8)
    write(ledger, rows[1], {4: 1.0, 6: 0.9})

    resumed = search_over(NARROW, GIVEN[:1], search, ledger)
    assert resumed.paused == {"0002", "0003", "0004"}
    told = [(t.state, t.intermediate_values) for t in resumed.study().trials]
    assert told == [(TrialState.PRUNED, {4: value}) for value in (1.0, 2.0, 3.0, 4.0)]
    again = [resumed.suggest(name) for name in "ghijk"]
    assert [(params["trial_id"], params["until"]) for params in again] == [
        ("0000", None), ("0001", 8), ("0005", 4), ("0006", 4), ("0002", 8),
    ]  # fmt: skip
    assert resumed.suggest("nothing") is None
    assert len(ledger.rows()) == 7


NARROW = SpaceConfig(exponent={"low": 0.5, "high": 5})
GIVEN = [trial_of(b) for b in PAPER_BASELINES]


def test_a_resumed_search_goes_by_the_ledger(tmp_path: Path) -> None:
    """Interrupted and failed trials first, under their ids; what had ended is learned from and not tried again."""
    ledger = Ledger(tmp_path)
    searcher = search_over(NARROW, GIVEN, ledger=ledger)
    begun = [searcher.suggest(name) or {} for name in "abcdef"]
    assert [params["trial_id"] for params in begun] == ["0000", "0001", "0002", "0003", "0004", "0005"]
    rows = ledger.rows()
    assert [row.trial.model_dump(mode="json") for row in rows] == [params["trial"] for params in begun]
    for number, value in ((0, 3.0), (1, 2.0), (4, 1.0)):
        record(ledger, rows[number], "FINISHED", {5: value + 1, 10: value})
    record(ledger, rows[5], "KILLED", {5: 4.0})
    record(ledger, rows[2], "FAILED", {})

    resumed = search_over(NARROW, GIVEN, ledger=ledger)
    learned = resumed.study().trials
    assert [t.params["exponent"] for t in learned] == [
        1,
        rows[4].trial.objective.exponent,
        rows[5].trial.objective.exponent,
    ]
    assert [t.state for t in learned] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED]
    assert [t.value for t in learned] == [2.0, 1.0, 4.0]
    assert learned[0].intermediate_values == {5: 3.0, 10: 2.0}
    again = [resumed.suggest(name) or {} for name in "ghi"]
    assert again[:2] == [begun[2], begun[3]]
    assert again[2]["trial_id"] == "0006"
    assert again[2]["trial"]["role"] == "search"
    assert ledger.rows()[2].status == "INTERRUPTED", "it runs again"


def test_a_value_that_is_no_number_teaches_nothing_after_a_resume(tmp_path: Path) -> None:
    """As it does before one: such a trial is pruned at its last number, or without one."""
    ledger = Ledger(tmp_path)
    searcher = search_over(NARROW, ledger=ledger)
    for name in "ab":
        searcher.suggest(name)
    first, second = ledger.rows()
    record(ledger, first, "FINISHED", {5: 2.0, 10: math.nan})
    record(ledger, second, "FINISHED", {10: math.nan})
    told = search_over(NARROW, ledger=ledger).study().trials
    assert [(t.state, t.value) for t in told] == [(TrialState.PRUNED, 2.0), (TrialState.PRUNED, None)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("begun", [1, 3, 6])
def test_a_resumed_search_draws_nothing_twice(tmp_path: Path, sampler: Any, begun: int) -> None:
    ledger = Ledger(tmp_path)
    search = SearchConfig(metric="eval/nll", sampler=sampler)
    first = search_over(NARROW, GIVEN[:2], search, ledger)
    drawn = [suggested(first, str(i)).objective.exponent for i in range(2 + begun)][2:]
    for row in ledger.rows():
        record(ledger, row, "FINISHED", {10: 1.0})
    second = search_over(NARROW, GIVEN[:2], search, ledger)
    drawn += [suggested(second, str(i)).objective.exponent for i in range(8 - begun)]
    assert len(set(drawn)) == 8
    if sampler == "tpe":
        whole = search_over(NARROW, search=search)
        assert drawn == [suggested(whole, str(i)).objective.exponent for i in range(8)]


def record(ledger: Ledger, row: TrialRow, status: Status, values: dict[int, float]) -> None:
    """A trial's evaluations and its end, as its workers and the driver write them."""
    write(ledger, row, values)
    metrics = {"eval/nll": values[max(values)]} if values else {}
    ledger.end(TrialRow(row.trial_id, row.trial, status, metrics, max(values, default=0)))


def write(ledger: Ledger, row: TrialRow, values: dict[int, float]) -> None:
    lines = [json.dumps({"step": step, "time": 1.7e9, "eval/nll": value}) for step, value in values.items()]
    (ledger.folder / row.trial_id / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


# --- grids ----------------------------------------------------------------------------------------------------------

LISTS = SpaceConfig(exponent=[0.5, 2, 3], threshold=[0.1, 0.2], threshold_unit="quantile")
POINTS = [TrialConfig(objective=o, learning_rate=RATE, seed=0) for o, _ in points(LISTS)]
GRID = SearchConfig(metric="eval/nll", sampler="grid")


def labels(trials: list[TrialConfig]) -> list[str]:
    return [trial.objective.label() for trial in trials]


def test_a_grid_is_gone_through_once_in_its_order_while_others_run() -> None:
    """Failed ones do not come back by themselves, and the advice changes nothing."""
    searcher = search_over(LISTS, GIVEN[:1], GRID, grid=POINTS, advice=advising(2, 3))
    found = [suggested(searcher, "-"), *(suggested(searcher, str(i)) for i in range(3))]
    searcher.on_trial_complete("1", finished(1.0))
    searcher.on_trial_complete("2", None, error=True)
    found += [suggested(searcher, str(i)) for i in range(3, 9)]
    assert labels(found[:4]) == ["nll", "exponent 0.5", "-p^2", "-p^3"]
    assert [(t.quantile, t.objective.exponent) for t in found[4:]] == [
        (quantile, exponent) for quantile in (0.1, 0.2) for exponent in (0.5, 2, 3)
    ]
    assert searcher.suggest("nothing") is None
    states = [t.state for t in searcher.study().trials]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE, *[TrialState.RUNNING] * 6], "the failed one is unknown"


@pytest.mark.parametrize("begun", [1, 3, 6, 9])
def test_a_resumed_grid_goes_on_where_the_ledger_ends(tmp_path: Path, begun: int) -> None:
    ledger = Ledger(tmp_path)
    first = search_over(LISTS, GIVEN[:1], GRID, ledger, grid=POINTS)
    for name in range(begun):
        first.suggest(str(name))
    for row in ledger.rows():
        record(ledger, row, "FINISHED", {10: 1.0})
    second = search_over(LISTS, GIVEN[:1], GRID, ledger, grid=POINTS)
    for name in range(10 - begun):
        assert suggested(second, str(name)).role == "search"
    assert second.suggest("nothing") is None
    whole = search_over(LISTS, GIVEN[:1], GRID, grid=POINTS)
    assert [row.trial for row in ledger.rows()] == [suggested(whole, str(i)) for i in range(10)]


def test_a_number_of_trials_takes_the_first_of_a_grid() -> None:
    searcher = search_over(LISTS, [], GRID.model_copy(update={"trials": 2}), grid=POINTS)
    assert labels([suggested(searcher, name) for name in "ab"]) == ["exponent 0.5", "-p^2"]
    assert searcher.suggest("nothing") is None


def test_the_points_of_a_grid_are_halved_as_what_is_drawn(tmp_path: Path) -> None:
    search = GRID.model_copy(update={"asha": HALVING.asha})
    searcher = search_over(LISTS, [], search, grid=POINTS[:2])
    assert [searcher.suggest(name)["until"] for name in "ab"] == [4, 4]
    searcher.on_trial_complete("a", paused(2.0, 4))
    searcher.on_trial_complete("b", paused(1.0, 4))
    assert searcher.suggest("c")["trial_id"] == "0001"


# --- advice -----------------------------------------------------------------------------------------------------------

WIDE = SpaceConfig(exponent={"low": 0.0, "high": 10})


def advising(*exponents: float) -> Advice:
    """These first, in this order and all promising, then -p^10, which is not."""
    choices = [Choice(a, None, 0.99 - i / 1000, 0.0) for i, a in enumerate(exponents)]
    return Advice(0.5, "intermediate", [*choices, Choice(10.0, None, 0.1, 0.0)], "low", 0.0, [], [(0.5, exponents[0])])


def test_what_is_advised_comes_before_what_is_drawn() -> None:
    """Baselines are not repeated, and no more than half of the searched trials, at most three, are advised."""
    searcher = search_over(WIDE, GIVEN, advice=advising(1, 0.5, 0.25, 2, 0.1))
    trials = [suggested(searcher, str(i)) for i in range(8)]
    assert [t.objective for t in trials[:4]] == list(PAPER_BASELINES)
    assert [t.objective.exponent for t in trials[4:7]] == [0.5, 0.25, 2]
    assert {t.role for t in trials[4:]} == {"search"}
    assert trials[7].objective.exponent not in (0.1, 0.5, 0.25, 2)
    few = search_over(WIDE, GIVEN, SEARCH.model_copy(update={"trials": 3}), advice=advising(1, 0.5, 0.25, 2, 0.1))
    found = [suggested(few, str(i)).objective.exponent for i in range(7)]
    assert found[4:6] == [0.5, 0.25]
    assert found[6] not in (2, 0.1)
    assert few.suggest("nothing") is None, "advised trials are searched ones"


def test_the_sampler_learns_from_advised_trials() -> None:
    searcher = search_over(WIDE, advice=advising(0.5, 2))
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_complete(name, finished(1.0))
    assert [t.params["exponent"] for t in searcher.study().trials] == [0.5, 2]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (SpaceConfig(exponent={"low": 0.3, "high": 1}), [0.5]),
        (SpaceConfig(exponent=[0.1, 0.25, 3]), [0.25]),
        (SpaceConfig(exponent={"low": 0, "high": 1, "step": 0.5}), [0.5]),
        (SpaceConfig(objectives=[{"type": "focal", "gamma": {"low": 0, "high": 5}}]), []),
        (SpaceConfig(threshold={"low": 0.1, "high": 0.5}, threshold_optional=False), []),
        (SpaceConfig(learning_rate={"low": 2 * RATE, "high": 3 * RATE}), []),
    ],
)
def test_only_what_lies_in_the_space_is_advised(space: SpaceConfig, expected: list[float]) -> None:
    searcher = search_over(space, advice=advising(0.25, 0.5))
    assert [trial.objective.exponent for trial in searcher.advised] == expected
    searcher.suggest("a")
    assert len(searcher.study().trials) == 1, "and Optuna takes it"


def test_without_search_advice_nothing_changes() -> None:
    silent = SEARCH.model_copy(update={"advice": False})
    first, second = search_over(WIDE, GIVEN, silent, advice=advising(0.5)), search_over(WIDE, GIVEN)
    assert [suggested(first, str(i)) for i in range(6)] == [suggested(second, str(i)) for i in range(6)]


@pytest.mark.parametrize("begun", [1, 2, 3, 5])
def test_a_resumed_search_goes_on_with_the_advice(tmp_path: Path, begun: int) -> None:
    """What it draws is what the uninterrupted one does, whether it was interrupted among the advised or after them."""
    advice = advising(0.5, 0.25)
    whole = search_over(WIDE, GIVEN[:1], advice=advice)
    expected = [suggested(whole, str(i)).objective.exponent for i in range(8)]
    ledger = Ledger(tmp_path)
    first = search_over(WIDE, GIVEN[:1], ledger=ledger, advice=advice)
    found = [suggested(first, str(i)).objective.exponent for i in range(begun)]
    for row in ledger.rows():
        record(ledger, row, "FINISHED", {10: 1.0})
    resumed = search_over(WIDE, GIVEN[:1], ledger=ledger, advice=advice)
    found += [suggested(resumed, str(i)).objective.exponent for i in range(8 - begun)]
    assert found == expected


def test_auto_is_filled_in_before_it_begins(tmp_path: Path) -> None:
    """Given or searched; the ledger holds what was picked, and the sampler knows a searched one again."""
    advice = advise(capability())
    ledger = Ledger(tmp_path)
    space = SpaceConfig(objectives=[{"type": "auto", "follow": [False, True]}])
    search = SEARCH.model_copy(update={"advice": False})
    searcher = search_over(space, [trial_of(Auto(threshold=0.2))], search, ledger, advice)
    given_one, searched = suggested(searcher, "a").objective, suggested(searcher, "b").objective
    assert given_one == Auto(exponent=advice.exponent, threshold=0.2)
    assert searched.exponent == advice.exponent
    assert [row.trial.objective for row in ledger.rows()] == [given_one, searched]
    assert [t.params for t in searcher.study().trials] == [{"auto.follow": searched.follow}]


def test_same_seed_same_suggestions() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def run() -> list[float]:
        searcher = search_over(SpaceConfig(exponent={"low": 0.0, "high": 10}))
        values = []
        for i in range(12):
            trial = suggested(searcher, str(i))
            values.append(trial.objective.exponent)
            searcher.on_trial_complete(str(i), finished((trial.objective.exponent - 2) ** 2))
        return values

    assert run() == run()


@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_first_draws_leave_no_wide_gap(seed: int, count: int, log: bool) -> None:
    """Every prefix of the golden-ratio sequence: no gap wider than twice the even one (on the circle)."""
    space = SpaceConfig(exponent={"low": 0.1, "high": 10, "log": log})
    searcher = search_over(space, search=SearchConfig(metric="eval/nll", seed=seed))
    values = [suggested(searcher, str(i)).objective.exponent for i in range(count)]
    shares = sorted((math.log10(v) + 1) / 2 if log else (v - 0.1) / 9.9 for v in values)
    gaps = [b - a for a, b in itertools.pairwise([*shares, shares[0] + 1])]
    assert max(gaps) < 2 / count


def test_a_stepped_range_is_reached_at_both_ends() -> None:
    space = SpaceConfig(exponent={"low": 0, "high": 1, "step": 0.5})
    searcher = search_over(space)
    values = {suggested(searcher, str(i)).objective.exponent for i in range(8)}
    assert values == {0.0, 0.5, 1.0}


def confirming(searcher: StudySearch, *seeds: int) -> None:
    """Have it confirm exponent 1 with these seeds."""
    trials = [trial_of(Power(exponent=1)).model_copy(update={"seed": seed, "role": "confirm"}) for seed in seeds]
    searcher.confirm = lambda rows: trials


def test_what_confirms_comes_once_all_else_has_ended_and_teaches_nothing() -> None:
    ledger = Ledger(Path(tempfile.mkdtemp()))
    search = SEARCH.model_copy(update={"trials": 1})
    space = SpaceConfig(exponent={"low": 0.5, "high": 5})
    searcher = search_over(space, [trial_of(Power(exponent=1))], search, ledger)
    confirming(searcher, 1, 2)
    for name in "ab":
        searcher.suggest(name)
    assert searcher.suggest("c") is None, "two trials still run"
    for name, trial in zip("ab", ("0000", "0001"), strict=True):
        searcher.on_trial_complete(name, finished(1.0))
        ledger.end(TrialRow(trial, searcher.trials[trial], "FINISHED", {"eval/nll": 1.0}, 10))
    first = suggested(searcher, "c")
    assert (first.role, first.seed) == ("confirm", 1)
    assert len(searcher.study().trials) == 2

    again = search_over(space, [trial_of(Power(exponent=1))], search, ledger)  # a resume: it goes on, none is new
    confirming(again, 1, 2)
    assert suggested(again, "d").seed == 1
    assert suggested(again, "e").seed == 2
    assert len(again.study().trials) == 2
    assert again.suggest("f") is None
    for name, trial in zip("de", ("0002", "0003"), strict=True):
        again.on_trial_complete(name, finished(2.0))
        ledger.end(TrialRow(trial, again.trials[trial], "FINISHED", {"eval/nll": 2.0}, 10))
    assert again.suggest("f") == "FINISHED"
    assert len(ledger.rows()) == 4
