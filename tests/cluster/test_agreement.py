"""What the files of cluster/ have in common with each other, with raysft, and with what its page promises."""

import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

from raysft.cli import app
from raysft.submit import job_request
from raysft.sweep.board import ON_HEAD
from raysft.sweep.driver import TRIAL_RESOURCES
from tests.cluster.filling import COMPOSE, FOLDER, KUBERAY, LAUNCHER, documents, filled, values

ROOT = FOLDER.parent
Document = dict[str, Any]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def one(file: str, kind: str) -> Document:
    (document,) = [document for document in documents(file) if document["kind"] == kind]
    return document


def pods(node: Any) -> Iterator[Document]:
    """Each pod's spec anywhere in a file."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def all_pods() -> list[Document]:
    return [pod for file in [*KUBERAY, "mlflow-kubernetes.yaml"] for pod in pods(documents(file))]


def entrypoint() -> str:
    return str(one("rayjob.yaml", "RayJob")["spec"]["entrypoint"])


# --- with raysft ----------------------------------------------------------------------------------------------------


def test_the_runtime_environment_is_that_of_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RAYSFT_ALLOW_OPEN", raising=False)
    made = job_request(Path("sweeps/gsm8k.yaml"), [], False)["runtime_env"]
    written = yaml.safe_load((FOLDER / "runtime-env.yaml").read_text())
    written["working_dir"] = str(Path(written["working_dir"]).resolve())
    written["py_modules"] = [str(Path(module).resolve()) for module in written["py_modules"]]
    assert written == made


def test_a_job_on_kubernetes_is_stopped_as_others_are() -> None:
    written = yaml.safe_load((FOLDER / "runtime-env.yaml").read_text())
    job = yaml.safe_load(one("rayjob.yaml", "RayJob")["spec"]["runtimeEnvYAML"])
    assert job == {"env_vars": written["env_vars"]}


def test_a_head_without_processors_holds_the_driver_and_what_it_starts() -> None:
    """The heads offer CPU 0, so nothing that runs there may ask for any."""
    assert TRIAL_RESOURCES == {"CPU": 0.0, **ON_HEAD}
    for file in ["aws.yaml", "gcp.yaml"]:
        (document,) = documents(file)
        assert document["available_node_types"][document["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert one("kuberay.yaml", "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_versions_are_those_that_are_tested() -> None:
    assert values()["RAY_VERSION"] == pinned("ray")
    assert values()["MLFLOW_IMAGE"].endswith(f":{pinned('mlflow')}")
    assert f'"mlflow[auth]=={pinned("mlflow")}"' in (FOLDER / "mlflow.Dockerfile").read_text()


def test_commands_have_options_that_exist() -> None:
    (sweep,) = [command for command in app.registered_commands if command.callback.__name__ == "sweep"]  # type: ignore[union-attr]
    known = {name.replace("_", "-") for name in sweep.callback.__annotations__} | {"set"}  # type: ignore[union-attr]
    used = set(re.findall(r"--([a-z-]+)", entrypoint().split("raysft sweep")[1]))
    assert {"resume", "set"} <= used <= known


# --- with each other ------------------------------------------------------------------------------------------------


def test_a_job_brings_the_cluster_of_its_own_file() -> None:
    assert one("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"] == one("kuberay.yaml", "RayCluster")["spec"]


def test_machines_are_set_up_alike() -> None:
    (aws,), (gcp,), (machines,) = (documents(file) for file in LAUNCHER)
    for key in ["file_mounts", "rsync_exclude", "worker_start_ray_commands"]:
        assert aws[key] == gcp[key] == machines[key]
    assert aws["head_start_ray_commands"] == gcp["head_start_ray_commands"]
    assert aws["setup_commands"][-3:] == gcp["setup_commands"][-3:] == machines["setup_commands"][-3:]


def test_what_is_mounted_is_there() -> None:
    for file in LAUNCHER:
        (document,) = documents(file)
        for local in document["file_mounts"].values():
            assert local.startswith("~") or (ROOT / local).exists(), local


def test_the_image_holds_what_the_job_starts() -> None:
    image = (FOLDER / "Dockerfile").read_text()
    assert "WORKDIR /opt/raysft" in image
    assert entrypoint().startswith("python -m raysft sweep ")
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY --chown=\S+ (.+) \S+$", image, re.MULTILINE):
        assert all(f"!{name}" in ignored and (ROOT / name).exists() for name in source.split())


def test_the_server_takes_the_name_that_jobs_call_it_by() -> None:
    (server,) = one("mlflow-kubernetes.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    (hosts,) = [word.partition("=")[2].split(",") for word in server["args"] if word.startswith("--allowed-hosts")]
    (called,) = re.findall(r"tracking.uri=http://(\S+)", entrypoint())
    assert is_allowed_host_header(hosts, called)
    assert is_allowed_host_header(hosts, "localhost:5000")
    assert not is_allowed_host_header(hosts, "elsewhere.example:5000")


def test_logins_are_kept_in_the_database_of_the_runs() -> None:
    (compose,) = documents(COMPOSE)
    for text, address in [
        (compose["configs"]["auth"]["content"], compose["services"]["mlflow"]["command"][-1]),
        (one("mlflow-kubernetes.yaml", "ConfigMap")["data"]["auth.ini"], filled("mlflow-kubernetes.yaml")),
    ]:
        logins = configparser.ConfigParser()
        logins.read_string(text)
        assert logins["mlflow"]["database_uri"] in address
        assert "admin_password" not in logins["mlflow"]


# --- what is promised -----------------------------------------------------------------------------------------------


def test_every_cluster_asks_for_a_token() -> None:
    for file in LAUNCHER:
        (document,) = documents(file)
        assert "~/.ray/auth_token" in document["file_mounts"]
        for commands in (document["head_start_ray_commands"], document["worker_start_ray_commands"]):
            assert "RAY_AUTH_MODE=token" in commands[-1]
        assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][-1]
    options = one("kuberay.yaml", "RayCluster")["spec"]["authOptions"]
    assert options == {"mode": "token", "secretName": "raysft-ray"}
    assert "RAY_AUTH_MODE=token" in filled("slurm.sh")
    assert "--dashboard-host=127.0.0.1" in filled("slurm.sh")


def test_workers_come_when_they_are_asked_for_and_go() -> None:
    for file in ["aws.yaml", "gcp.yaml"]:
        (document,) = documents(file)
        assert document["available_node_types"]["worker"]["min_workers"] == 0
        assert document["idle_timeout_minutes"] > 0
        assert "SPOT" in str(document["available_node_types"]["worker"]["node_config"]).upper()
        assert "SPOT" not in str(document["available_node_types"]["head"]["node_config"]).upper()
    (group,) = one("kuberay.yaml", "RayCluster")["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0
    assert group["maxReplicas"] > 0


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    assert len(all_pods()) == 8
    for pod in all_pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_pods_get_what_they_ask_for() -> None:
    for pod in all_pods():
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_no_password_stands_in_a_file() -> None:
    """Where one is meant, a secret or a file is named."""
    for pod in all_pods():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if re.search(r"PASSWORD|TOKEN|SECRET|KEY|USERNAME", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"], variable["name"]
    (compose,) = documents(COMPOSE)
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY|CREDENTIALS", name):
                assert value.startswith("/run/secrets/"), name


def test_servers_of_compose_are_reached_from_this_machine_alone() -> None:
    (compose,) = documents(COMPOSE)
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]


def test_images_are_pinned() -> None:
    for name, image in values().items():
        if name.endswith("_IMAGE") and name not in {"AWS_IMAGE", "GCP_IMAGE"}:
            assert re.search(r":[\w.-]*\d", image), name
            assert "latest" not in image


def test_the_page_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text()
    for path in FOLDER.iterdir():
        if path.is_file() and path.name != "README.md" and path.suffix != ".dockerignore":
            assert path.name in page, path.name


def test_the_page_names_secrets_that_are_used_and_all_of_them() -> None:
    page = (FOLDER / "README.md").read_text()
    made = set(re.findall(r"secret generic (\S+)", page))
    used = {reference["name"] for reference in _references(all_pods())} | {"raysft-ray"}
    assert made == used
    for reference in _references(all_pods()):
        assert reference["key"] in page
    (compose,) = documents(COMPOSE)
    for secret in compose["secrets"].values():
        assert secret["file"].removeprefix("secrets/") in page


def _references(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_the_server_has_the_versions_that_are_tested() -> None:
    asked = re.findall(r'"?([\w-]+)(?:\[\w+\])?==([\d.]+)', (FOLDER / "mlflow.Dockerfile").read_text())
    assert {name for name, _ in asked} == {"mlflow", "boto3", "psycopg"}  # SQLAlchemy takes psycopg for postgresql://
    tested = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(f"{name}=={version}" in tested for name, version in asked)
