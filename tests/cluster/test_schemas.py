"""Each file against the schema of the program that reads it, which a misspelt key must break.

Ray's schema comes with Ray, Kubernetes' with kubernetes-validate and Compose's with check-jsonschema. No package holds
KubeRay's: kuberay.json is our list of its fields.
"""

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.cluster.filling import COMPOSE, KUBERAY, KUBERNETES, LAUNCHER, documents

KUBERNETES_VERSION = "1.33.0"
Document = dict[str, Any]


def check_launcher(document: Document) -> None:
    """As `ray up` does before it asks a cloud for anything."""
    validate_config(prepare_config(copy.deepcopy(document)))


def check_kubernetes(document: Document) -> None:
    group, _, version = document["apiVersion"].rpartition("/")
    name = "-".join(part for part in (document["kind"].lower(), group.partition(".")[0], version) if part)
    kubernetes(name).validate(document)


@cache
def kubernetes(name: str) -> jsonschema.Draft202012Validator:
    """The strict schemas: what the server would drop without a word is an error."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}-local-strict"
    schema, shared = (json.loads((folder / f"{part}.json").read_text()) for part in (name, "_definitions"))
    registry = Registry().with_resource("_definitions.json", DRAFT202012.create_resource(shared)).crawl()
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def kuberay() -> Document:
    return json.loads(Path(__file__).with_name("kuberay.json").read_text())


def check_kuberay(document: Document) -> None:
    kind = document["kind"]
    jsonschema.Draft202012Validator(kuberay() | {"$ref": f"#/$defs/{kind}"}).validate(document)
    for template in templates(document["spec"]):
        check_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template})


def templates(spec: Document) -> Iterator[Document]:
    """The pods that a RayCluster or RayJob asks for."""
    if "submitterPodTemplate" in spec:
        yield spec["submitterPodTemplate"]
    cluster = spec.get("rayClusterSpec", spec)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]


@cache
def compose() -> Document:
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(vendored.read_text())


def check_compose(document: Document) -> None:
    jsonschema.validators.validator_for(compose())(compose()).validate(document)


CHECKS: dict[str, Callable[[Document], None]] = {
    **dict.fromkeys(LAUNCHER, check_launcher),
    **dict.fromkeys(KUBERAY, check_kuberay),
    **dict.fromkeys(KUBERNETES, check_kubernetes),
    COMPOSE: check_compose,
}
# Ray and KubeRay take any text here, Kubernetes any name, and Compose what begins with x-.
FREE = {"node_config", "file_mounts", "metadata", "rayStartParams", "nodeSelector", "labels", "matchLabels", "selector"}
FREE |= {"data", "requests", "limits", "environment", "args", "volumes", "secrets", "configs", "services"}
CHOOSES = {"provider", "kind", "apiVersion"}  # the schema itself goes by these
FREE |= {"available_node_types", "resources", "provider", "depends_on"}


@pytest.mark.parametrize("file", CHECKS)
def test_a_file_is_valid(file: str) -> None:
    for document in documents(file):
        CHECKS[file](document)


def misspellings(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of each key that its schema knows."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "x-mlflow":  # a block that the services below repeat
                continue
            if (path and path[-1] not in FREE) or (not path and key not in CHOOSES):
                yield (*path, key)
            if key != "node_config":
                yield from misspellings(value, (*path, key))
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield from misspellings(value, (*path, at))


def misspelt(document: Document, path: tuple[Any, ...]) -> Document:
    changed = copy.deepcopy(document)
    node = changed
    for step in path[:-1]:
        node = node[step]
    node[f"{path[-1]}s"] = node.pop(path[-1])
    return changed


def is_refused(file: str, document: Document) -> bool:
    try:
        CHECKS[file](document)
    except jsonschema.ValidationError:
        return True
    return False


@pytest.mark.parametrize("file", CHECKS)
def test_any_misspelt_key_is_refused(file: str) -> None:
    tried = 0
    for document in documents(file):
        for path in misspellings(document):
            assert is_refused(file, misspelt(document, path)), f"{file}: nobody minds {path} with an s"
            tried += 1
    assert tried >= 4
