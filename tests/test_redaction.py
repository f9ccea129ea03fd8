import pytest

from raysft.redaction import holds_secret, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pa:ss@host:5432/db", "postgresql://me:<redacted>@host:5432/db"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("password: 'x y", "password: <redacted> y"),
        ("max_new_tokens: 256", "max_new_tokens: 256"),
        ("git clone https://abcdef@host/x", "git clone https://<redacted>@host/x"),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_secrets_of_the_environment_are_found_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "sesame-open")
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-wide")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-value-that-is-none")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    assert redacted("no sesame-open-wide, sesame-open") == "no <redacted>, <redacted>"
    assert redacted("it is true: a-value-that-is-none") == "it is true: a-value-that-is-none"
    assert holds_secret("xsesame-openx")
    assert not holds_secret("true")


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("postgresql://me:pw@host/db", True),
        ("http://abc@host", True),
        ("postgresql://host/db?sslmode=require&password=x", True),
        ("use hf_abcdefghijklmnopqrst", True),
        ("postgresql://me@host/db", False),
        ("mysql+pymysql://me@host/db?read_default_file=~/.my.cnf", False),
        ("http://127.0.0.1:5000", False),
        ("hf_internal_testing/tiny-random-model", False),
        ("Answer with one token: yes or no", False),
        ("me@example.org", False),
    ],
)
def test_a_secret_is_only_what_surely_is_one(text: str, held: bool) -> None:
    assert holds_secret(text) == held
