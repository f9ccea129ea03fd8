"""The files of cluster/ with the values of values.env in place."""

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "cluster"
VALUES = FOLDER / "values.env"
BRACED = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")  # `$NAME` without braces is left to the machine that reads it
LAUNCHER = ["aws.yaml", "gcp.yaml", "machines.yaml"]
KUBERAY = ["kuberay.yaml", "rayjob.yaml"]
KUBERNETES = ["kubernetes-storage.yaml", "mlflow-kubernetes.yaml"]
COMPOSE = "mlflow-compose.yaml"


def values() -> dict[str, str]:
    """What a person sets; a word that YAML takes as text where nothing is set yet."""
    lines = [line for line in VALUES.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.replace("=CHANGE", "=changed").split("=", 1) for line in lines)


def filled(name: str) -> str:
    """Raises KeyError for a name that has no value."""
    return BRACED.sub(lambda found: values()[found[1]], (FOLDER / name).read_text())


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(filled(name)))
