"""Which of a question's options a model chose."""

import re

from rapidfuzz import fuzz

from raysft.data.sources import Example
from raysft.errors import InputError
from raysft.evaluation.boxed import last_boxed
from raysft.evaluation.scorers import Scored, Scorer, register
from raysft.mathjudge import plain


@register("options")
class Options(Scorer):
    """1 where the chosen option is the right one. The first rule that finds one decides, and is kept in `how`:

    box or "answer is X"; the last label that stands alone; the option whose text comes last; the closest option.
    """

    def check(self, example: Example) -> None:
        check_options(example)

    def score(self, completion: str, example: Example) -> Scored:
        label, how = chosen(completion, example.options or {})
        return Scored(float(label == example.response), label, how)


def check_options(example: Example) -> None:
    """Raises InputError for a problem without options, or whose answer is none of them."""
    if not example.options:
        raise InputError(example.origin, "has no options.", "Name their field with the task's options.")
    if example.response not in example.options:
        labels = ", ".join(example.options)
        raise InputError(
            example.origin, f"the answer '{example.response}' is none of its options.", f"Valid: {labels}."
        )


def chosen(text: str, options: dict[str, str]) -> tuple[str | None, str]:
    """The label of the option that the text chooses, and by which rule; None for an empty text."""
    if not text.strip() or not options:
        return None, ""
    rules = {"boxed": _boxed, "answer is": _said, "label": _alone, "text": _text}
    for how, rule in rules.items():
        if (label := rule(text, options)) is not None:
            return label, how
    return max(options, key=lambda label: fuzz.ratio(options[label].lower(), text.strip().lower())), "closest"


def _boxed(text: str, options: dict[str, str]) -> str | None:
    """A label in the last box, with or without its text behind it, or the text alone."""
    if (content := last_boxed(text)) is None:
        return None
    content = plain(content)
    label = re.match(rf"\(?({_labels(options)})(?![A-Za-z0-9])", content)
    return label[1] if label else next((key for key, value in options.items() if plain(value) == content), None)


def _said(text: str, options: dict[str, str]) -> str | None:
    found = re.findall(rf"(?i:answer(?: is|:))[\s:*$\\(]*(?:\\?text\{{)?\(?({_labels(options)})(?![A-Za-z0-9'])", text)
    return found[-1] if found else None


def _alone(text: str, options: dict[str, str]) -> str | None:
    """The last label that is no part of a word, and no article: `A fever` chooses nothing."""
    found = re.findall(rf"(?<![A-Za-z0-9'])({_labels(options)})(?![A-Za-z0-9']|(?<=A) [a-z])", text)
    return found[-1] if found else None


def _text(text: str, options: dict[str, str]) -> str | None:
    """The option whose text comes last; of texts that end at one place, the longest."""
    lower = text.lower()
    ends = {
        label: (lower.rfind(o.lower()) + len(o), len(o)) for label, o in options.items() if o.lower() in lower and o
    }
    return max(ends, key=lambda label: ends[label], default=None)


def _labels(options: dict[str, str]) -> str:
    return "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
