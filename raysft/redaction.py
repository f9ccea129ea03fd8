"""Texts without the secrets that they may hold."""

import os
import re

_SECRET = re.compile(
    r"(?:(?<=://)([^:/@\s]*:)[^@/\s]+(?=@)"  # the password in an address
    r"|(https?://)[^:/@\s]+(?=@)"  # a token in the place of a login
    r"|((?:token|secret|password|api_?key)['\"]?\s*[:=]\s*)[^\s&]+"  # the value of a key of such a name
    r"|\bhf_\w{16,})",
    re.IGNORECASE,
)
# What is a secret wherever it stands: a login or password in an address, a token of the hub.
_SURELY = re.compile(r"://[^:/@\s]*:[^@/\s]+@|^https?://[^/@\s]+@|://\S*[?&](?:password|token)=|\bhf_[A-Za-z0-9]{16,}")
_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|_PWD|API_?KEY|ACCESS_KEY)$")  # names whose values are secrets
SHORTEST = 8  # characters of a variable's value that is looked for: "true" or a number would be found everywhere


def redacted(text: str) -> str:
    """The text without passwords, tokens and keys, those of this process's environment included."""
    for value in _of_environment():
        text = text.replace(value, "<redacted>")
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3] or ''}<redacted>", text)


def holds_secret(text: str) -> bool:
    """Whether it surely does; words like `token: ` are in many a prompt."""
    return bool(_SURELY.search(text)) or any(value in text for value in _of_environment())


def _of_environment() -> list[str]:
    """The secrets that are variables, the longest first, since one may hold another."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
