"""Whether two mathematical answers are the same, by math-verify; and the process that `raysft.evaluation.pool` asks.

Alone in its process, because sympy can take for ever on what a model writes, and only a process can be stopped.
"""

import math
import re
from typing import Any

from raysft.judging import serve

LONGEST = 1000  # characters of an answer: longer ones are no answers, and cost seconds to parse

ROUND_OFF = 1e-6  # of decimal numbers that are written out: 0.333333 is 1/3

NUMBER = r"[-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)")
TRAILING_WORDS = re.compile(rf"(\\?\$?\s*{NUMBER})\s*(?:[A-Za-z]{{2,}}\.?\s*)+")
DECIMAL = re.compile(r"\d\.\d|(?<!\d)\.\d|\d[eE][-+]?\d|10\^")
SPACES = re.compile(r"\\[,;:! ]|~|\s+")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


def judge(reference: str, answer: str, tolerance: float = 0.0) -> bool:
    """Whether the answer is the reference's value. May run for ever, and asks for memory without end.

    tolerance: relative, for two real numbers of which one is written as a decimal number.
    """
    if len(answer) > LONGEST:
        return False
    if plain(reference) == plain(answer):
        return True
    gold, found = _parsed(_prepared(reference)), _parsed(_prepared(answer))
    if not gold or not found:
        return False
    if DECIMAL.search(reference) or DECIMAL.search(answer):
        expected, values = _reals(gold[0], reference), _reals(found[0], answer)
        if expected and values:  # math-verify rounds to 6 decimals: 3e-19 would be 1e-27
            close = max(tolerance, ROUND_OFF)
            return any(math.isclose(a, b, rel_tol=close) for a in expected for b in values)
    from math_verify import verify

    return bool(verify(gold, found, timeout_seconds=None, allow_set_relation_comp=True))


def plain(text: str) -> str:
    """The text without what LaTeX puts around words; words in lower case, single letters as they are."""
    text = text.replace("$", "").replace("\\left", "").replace("\\right", "").replace("\\%", "%")
    text = SPACES.sub("", WRAPPED.sub(r"\1", text)).strip().rstrip(".")
    return re.sub(r"(?<!\\)\b[A-Za-z]{2,}\b", lambda word: word[0].lower(), text)


def _prepared(text: str) -> str:
    """Without units in words (18 dollars), and powers of ten as LaTeX has them (4.5e33)."""
    text = text.strip().rstrip(".")
    if words := TRAILING_WORDS.fullmatch(text):
        text = words[1]
    return E_NOTATION.sub(lambda match: f"{match[1]} \\times 10^{{{int(match[2])}}}", text)


def _parsed(text: str) -> list[Any]:
    """Expression and text; in a box, so that math-verify takes it whole."""
    from math_verify import parse

    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _reals(expression: Any, text: str) -> list[float]:
    """The expression's value if it is a real number; of a percentage also the number before the sign."""
    try:
        value = complex(expression.doit().evalf()) if expression.is_number else complex("nan")
    except (AttributeError, TypeError, ValueError, OverflowError):
        return []
    if value.imag != 0 or not math.isfinite(value.real):
        return []
    return [value.real, 100 * value.real] if "%" in text else [value.real]


def main() -> None:
    serve(judge, "\\frac{1}{2}", "x+1")  # imports sympy and builds its parser
