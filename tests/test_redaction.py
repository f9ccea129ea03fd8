import pytest

from raysft.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pa:ss@host:5432/db", "postgresql://me:<redacted>@host:5432/db"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("password: 'x y", "password: <redacted> y"),
        ("max_new_tokens: 256", "max_new_tokens: 256"),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown
