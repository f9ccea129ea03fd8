"""Texts without the secrets that they may hold."""

import re

_SECRET = re.compile(
    r"(?:(?<=://)([^:/@\s]*:)[^@/\s]+(?=@)"  # the password in an address
    r"|((?:token|secret|password|api_?key)['\"]?\s*[:=]\s*)[^\s&]+"  # the value of a key of such a name
    r"|\bhf_\w{16,})",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text without passwords, tokens and keys."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}<redacted>", text)
