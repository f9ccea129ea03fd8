"""The one exception that a user's input can cause: it names the place, the reason and the fix."""

from difflib import get_close_matches


class InputError(Exception):
    """Input that was refused before anything expensive started (exit code 2).

    place: file, line, key or path; reason: what is wrong there; fix: what to do about it. What UTF-8 cannot hold, such
    as half of a surrogate pair that is quoted from the input, is escaped: no terminal could show it.
    """

    def __init__(self, place: str, reason: str, fix: str = "") -> None:
        place, reason, fix = (text.encode(errors="backslashreplace").decode() for text in (place, reason, fix))
        super().__init__(place, reason, fix)  # all three, so that it survives pickling by Ray
        self.place, self.reason, self.fix = place, reason, fix

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f" {self.fix}" if self.fix else "")


class TrialFailed(Exception):
    """A trial that cannot go on (exit code 1); its worker group can run the next one."""


def did_you_mean(name: str, valid: list[str]) -> str:
    """The sentence that names the nearest valid name, or all of them."""
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{near[0]}'?"
    return "Valid: " + ", ".join(sorted(valid)) + "."
