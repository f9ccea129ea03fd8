"""Successive halving by promotion: who may go on, in any order of results, and what that costs."""

import random
from dataclasses import dataclass, field
from math import nan

from hypothesis import given
from hypothesis import strategies as st

from raysft.config import AshaConfig
from raysft.sweep.halving import Halving


def halving(first: int = 4, factor: int = 2, maximise: bool = False) -> Halving:
    return Halving(AshaConfig(grace_period=first, reduction_factor=factor), maximise)


def reach(found: Halving, trial_id: str, value: float) -> None:
    """A searched trial comes to the rung that it was sent to; it begins where it is new."""
    if trial_id not in found.sent:
        found.begin(trial_id)
    found.record(trial_id, found.sent[trial_id], value)
    found.pause(trial_id)


def test_the_best_half_goes_on_as_soon_as_it_is_known() -> None:
    found = halving()
    reach(found, "a", 1.0)
    assert found.promote() is None, "the best of one is not among the best half of it"
    reach(found, "b", 2.0)
    assert (found.promote(), found.promote()) == ("a", None)
    assert found.sent == {"a": 8, "b": 4}
    reach(found, "c", 0.5)
    assert found.promote() is None, "the one place is taken"
    reach(found, "d", 0.6)
    assert found.promote() == "c"


def test_more_may_be_better() -> None:
    found = halving(maximise=True)
    reach(found, "a", 1.0)
    reach(found, "b", 2.0)
    assert found.promote() == "b"


def test_the_highest_rung_comes_first_and_ties_go_to_the_older() -> None:
    found = halving()
    for name in "abcd":
        reach(found, name, 1.0)
    assert [found.promote(), found.promote(), found.promote()] == ["a", "b", None]
    for name in "efab":
        reach(found, name, 1.0)
    assert found.rungs.keys() == {4, 8}
    assert [found.promote(), found.promote(), found.promote()] == ["a", "c", None]
    assert found.sent["a"] == 16


def test_baselines_count_in_the_rungs_but_are_never_promoted() -> None:
    found = halving()
    for step in (2, 4, 6, 8):
        found.record("baseline", step, 0.1)
    assert {rung: list(scores) for rung, scores in found.rungs.items()} == {4: ["baseline"], 8: ["baseline"]}
    reach(found, "a", 1.0)
    reach(found, "b", 2.0)
    assert found.promote() is None, "of three, the best half is the baseline"
    reach(found, "c", 3.0)
    assert found.promote() == "a"


def test_a_value_that_is_no_number_is_the_worst() -> None:
    for maximise in (False, True):
        found = halving(maximise=maximise)
        reach(found, "a", nan)
        reach(found, "b", 5.0)
        assert found.promote() == "b"


def test_one_goes_on_where_the_study_would_end_otherwise() -> None:
    found = halving(factor=4)
    assert found.rescue() is None
    for name, value in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        reach(found, name, value)
    assert found.promote() is None, "three are too few for a quarter"
    assert found.rescue() == "b"
    assert found.rescue() is None, "one has left the rung"
    reach(found, "b", 9.0)
    assert (found.rescue(), found.sent["b"]) == ("b", 64)
    assert found.rescue() is None


def test_what_was_reached_before_an_interruption_counts() -> None:
    found = halving()
    for name, until, value in (("a", 8, 1.0), ("b", None, 2.0)):
        found.begin(name, until)
        found.record(name, 4, value)
    found.pause("b")
    reach(found, "c", 1.5)
    assert found.promote() is None, "a has the place of three"
    reach(found, "d", 1.7)
    assert found.promote() == "c"


@dataclass
class Study:
    """Halving played through with drawn values: slots, trials and the events of a run, in a drawn order."""

    factor: int
    searched: int
    baselines: int
    slots: int
    seed: int
    chaos: float  # chance that a trial fails on its way
    rungs: int = 3
    steps_trained: int = 0
    finished: int = 0
    failed: int = 0
    promoted: set[tuple[int, str]] = field(default_factory=set)  # (rung, trial)

    def run(self) -> Halving:
        draw = random.Random(self.seed)
        found = halving(1, self.factor)
        whole = self.factor ** (self.rungs - 1)
        running: list[str] = []
        new = [f"s{i:02d}" for i in range(self.searched)]
        late = [(f"b{i}", self.factor**k) for i in range(self.baselines) for k in range(self.rungs - 1)]
        draw.shuffle(late)
        while True:
            while late and draw.random() < 0.3:
                found.record(*late.pop(), draw.choice([0, draw.random()]))
            while len(running) < self.slots and (name := self.choose(found, new, running)):
                running.append(name)
            if not running:
                return found
            name = running.pop(draw.randrange(len(running)))
            reached = min(found.sent[name], whole)
            self.steps_trained += reached - (reached // self.factor if reached > 1 else 0)
            if draw.random() < self.chaos:
                self.failed += 1
            elif reached == whole:
                self.finished += 1
            else:
                reach(found, name, draw.choice([0, draw.random()]))

    def choose(self, found: Halving, new: list[str], running: list[str]) -> str | None:
        before = dict(found.sent)
        rungs = {rung: dict(scores) for rung, scores in found.rungs.items()}
        if name := found.promote():
            rung = before[name]
            better = [t for t, score in rungs[rung].items() if (-score, t) < (-rungs[rung][name], name)]
            assert len(better) < len(rungs[rung]) // self.factor, "it is among the best 1/n of its rung"
            assert rung == max(r for r in rungs if name in rungs[r])
        elif new:
            found.begin(new[0])
            return new.pop(0)
        elif not running and (name := found.rescue()):
            rung = before[name]
            assert all(rungs[rung][t] <= rungs[rung][name] for t in rungs[rung] if t in before)
        if name:
            assert (rung, name) not in self.promoted, "nobody is promoted twice from a rung"
            self.promoted.add((rung, name))
        return name


STUDIES = st.builds(
    Study,
    factor=st.integers(2, 4),
    searched=st.integers(1, 20),
    baselines=st.integers(0, 5),
    slots=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    chaos=st.sampled_from([0.0, 0.0, 0.3]),
)


@given(STUDIES)
def test_any_order_of_results_keeps_the_promise(study: Study) -> None:
    found = study.run()
    for rung, scores in found.rungs.items():
        searched = [t for t in scores if t in found.sent]
        left = [name for at, name in study.promoted if at == rung]
        assert len(left) <= max(1, len(searched) // study.factor)
    assert study.finished or study.failed, "one runs to its end"
    if study.searched % study.factor**2 == 0:
        bound = study.searched * (study.factor + (study.rungs - 1) * (study.factor - 1))
        assert study.steps_trained * study.factor <= bound


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 4))
def test_sixteen_trials_of_which_a_quarter_goes_on_cost_two_and_a_half_runs(
    seed: int, slots: int, baselines: int
) -> None:
    study = Study(factor=4, searched=16, baselines=baselines, slots=slots, seed=seed, chaos=0.0)
    study.run()
    assert study.finished == 1
    assert study.steps_trained <= 2.5 * 16
