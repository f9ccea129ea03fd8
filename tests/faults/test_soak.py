"""What the soak counts, on a sweep that was not killed at all but is told otherwise."""

from tests.faults.soak_subjects import Tally, redone


def test_steps_that_are_taken_again_are_counted() -> None:
    undisturbed = [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)]
    assert redone(undisturbed) == (0, 0)
    assert redone([*undisturbed, ("a", 2), ("a", 3), ("a", 4), ("b", 3)]) == (2, 2)
    assert redone([*undisturbed, ("a", 3), ("a", 4), ("a", 2), ("a", 3), ("a", 4)]) == (4, 3)


def test_tallies_add_up_but_for_the_worst() -> None:
    total = Tally()
    total.add(Tally(sweeps=1, redone=5, worst_redone=5))
    total.add(Tally(sweeps=1, redone=2, worst_redone=2, trials_lost=1))
    assert total == Tally(sweeps=2, redone=7, worst_redone=5, trials_lost=1)
