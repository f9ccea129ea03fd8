"""How much a text repeats itself: an objective that leans on what the model already believes can end in loops."""

from collections.abc import Sequence

GRAM = 4


def repetition(tokens: Sequence[int]) -> float:
    """Share of a completion's runs of four tokens that stood in it before: 0 where all differ, near 1 in a loop."""
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
