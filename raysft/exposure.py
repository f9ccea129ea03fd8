"""What could be reached over a network without a password: clusters and tracking servers that ask for none.

Whoever reaches a Ray cluster can run programs on it. Needs neither ray nor mlflow.
"""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from raysft.errors import InputError
from raysft.redaction import redacted

ALLOW = "RAYSFT_ALLOW_OPEN"
NOT_OPEN = f"If nobody else can reach it, as in a private network, say so with {ALLOW}=1."
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray sets for a job's driver, which is where it was sent
RAY_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MLFLOW_LOGINS = (
    ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    ("MLFLOW_TRACKING_TOKEN",),
    ("MLFLOW_TRACKING_AUTH",),
    ("MLFLOW_TRACKING_AWS_SIGV4",),
    ("MLFLOW_TRACKING_CLIENT_CERT_PATH",),
)


def check_ray(address: str | None) -> None:
    """Raises InputError for a cluster of other machines without a token.

    address: host:port, ray://host:port, the dashboard's http://host:port; None, auto, local: found on this machine.
    """
    if address in (None, "", "auto", "local") or IN_A_JOB in os.environ or _allowed():
        return
    # A token alone says nothing: any local Ray leaves one in ~/.ray.
    asks_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and has_ray_token()
    if _on_this_machine(str(address)) or asks_token:
        return
    raise InputError(
        f"Ray cluster {address}",
        "is on another machine, and RAY_AUTH_MODE=token is not set with a token: a cluster that asks for none runs "
        "whatever it is sent, by anybody.",
        "Start it with RAY_AUTH_MODE=token, and set that and RAY_AUTH_TOKEN (or ~/.ray/auth_token) here, as "
        f"cluster/README.md says; or reach it through ssh -L. {NOT_OPEN}",
    )


def has_ray_token() -> bool:
    named = any(os.environ.get(name) for name in RAY_TOKENS)
    return named or (Path.home() / ".ray" / "auth_token").exists()


def check_mlflow(uri: str | None) -> None:
    """Raises InputError for a tracking server of another machine where no login is set."""
    if uri is None or not uri.startswith(("http://", "https://")) or _on_this_machine(uri) or _allowed():
        return
    logins = any(all(os.environ.get(name) for name in names) for names in MLFLOW_LOGINS)
    if logins or (Path.home() / ".mlflow" / "credentials").exists():
        return
    raise InputError(
        f"tracking.uri '{redacted(uri)}'",
        "is on another machine, and no login is set: whoever reaches a server without one can change what it holds.",
        "Start it with mlflow server --app-name basic-auth, and set MLFLOW_TRACKING_USERNAME and "
        f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. {NOT_OPEN}",
    )


def _allowed() -> bool:
    return os.environ.get(ALLOW) == "1"


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may mean any machine
        return False
