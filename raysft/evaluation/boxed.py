"""The answer that a model puts into a box."""

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*")


def last_boxed(text: str) -> str | None:
    """What stands in the last box whose braces close: \\boxed{...}, or \\boxed 5 without braces."""
    for box in reversed(list(BOX.finditer(text))):
        if (content := _braced(text, box.end())) is not None and content.strip():
            return content.strip()
    return None


def _braced(text: str, start: int) -> str | None:
    """What the braces at `start` hold, however deeply nested; the next word where there are none."""
    if text[start : start + 1] != "{":
        word = re.compile(r"[^\s$]+").match(text, start)
        return word[0] if word else None
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":  # \{ and \} are braces that are printed
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
        at += 1
    return None
