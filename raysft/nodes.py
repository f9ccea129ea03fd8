"""A look at every node of a running Ray cluster before a sweep starts there: versions, GPUs, memory, shared folders.

Runs one small task a node, which imports neither torch nor transformers and leaves nothing behind.
"""

import os
import platform
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import raysft
from raysft.architecture import of_backbone
from raysft.config import BackboneConfig, SweepConfig
from raysft.devices import find_device
from raysft.errors import InputError
from raysft.estimate import memory
from raysft.exposure import check_ray
from raysft.redaction import redacted
from raysft.store import Store

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "peft", "datasets")
GATED = ("meta-llama/", "google/gemma")  # whose weights the hub gives only to those who have accepted their terms
SECONDS = 120  # within which every node has to answer: a process has to start there
HEALTH_SECONDS = 5
SAME_VERSIONS = "Install the same versions everywhere, with constraints.txt."


@dataclass(frozen=True)
class Gpu:
    """memory: bytes; 0 where it is not known (without nvidia-ml-py)."""

    name: str
    memory: float


@dataclass(frozen=True)
class Asked:
    """What a node is asked. token: a file that the driver has just written; storage: the bucket that keeps it, if one
    does; paths: local ones of the sweep.
    """

    token: str
    storage: str | None
    paths: tuple[str, ...]
    tracking: str | None
    gated: tuple[BackboneConfig, ...]


@dataclass(frozen=True)
class Node:
    """What a node says. memory, free: bytes of the host; sees: the token; writes, tracking: what went wrong, if
    anything; missing: paths that are not there; locked: gated backbones that it could not fetch.
    """

    name: str
    versions: dict[str, str]
    gpus: tuple[Gpu, ...]
    memory: float
    free: float
    sees: bool
    writes: str
    missing: tuple[str, ...]
    tracking: str
    locked: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """What was found. groups: of each backbone, at once."""

    rows: list[tuple[str, str]]
    refused: list[InputError]
    groups: dict[str, int]
    nodes: list[Node] = field(default_factory=list)

    @property
    def smallest_gpu(self) -> Gpu | None:
        """Of those whose memory is known."""
        return min(
            (gpu for node in self.nodes for gpu in node.gpus if gpu.memory), key=lambda g: g.memory, default=None
        )


def look_at(config: SweepConfig, address: str | None) -> Cluster:
    """Connect to a running cluster, ask all of its nodes at once, and compare. address: as `raysft sweep` takes it.

    Raises InputError for a cluster that does not answer.
    """
    import ray

    from raysft.sweep.session import ray_session
    from raysft.sweepfile import absolute

    if not ray.is_initialized():
        check_ray(address or os.environ.get("RAY_ADDRESS"))
    config = absolute(config)
    with ray_session(address), _token(config) as token:
        alive = [node for node in ray.nodes() if node["Alive"]]
        asked = _asked(config, token)
        here = answer(asked)
        nodes, refused = _ask_all(alive, asked)
        groups, unfit = _groups(config, alive)
    refused += [problem for node in nodes for problem in problems(node, here)] + _tracking(config, here) + unfit
    refused += _host_memory(config, nodes)
    return Cluster(table(nodes, groups, here), refused, groups, nodes)


# --- on a node -------------------------------------------------------------------------------------------------------


def answer(asked: Asked) -> Node:
    """Of this process's machine."""
    token = Path(asked.token)
    store = Store(token.parent, asked.storage)
    total, free = _host()
    return Node(
        name=socket.gethostname(),
        versions=_versions(),
        gpus=_gpus(),
        memory=total,
        free=free,
        sees=_sees(store, token),
        writes=_why_not_written(store),
        missing=tuple(path for path in asked.paths if not os.path.exists(path)),
        tracking=_why_no_answer(asked.tracking) if asked.tracking else "",
        locked=tuple(backbone.path for backbone in asked.gated if not _has_access(backbone)),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "raysft": raysft.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _gpus() -> tuple[Gpu, ...]:
    """By nvidia-ml-py, where it is installed and finds a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # it has many ways to say that there is none
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(Gpu(_text(pynvml.nvmlDeviceGetName(h)), pynvml.nvmlDeviceGetMemoryInfo(h).total) for h in handles)
    finally:
        pynvml.nvmlShutdown()


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _host() -> tuple[float, float]:
    """Bytes of memory, and of what is free: of the container, where it has a limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = float(page * os.sysconf("SC_PHYS_PAGES")), float(page * os.sysconf("SC_AVPHYS_PAGES"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError, StopIteration):  # no Linux, or no limit, which is the word max
        return total, free
    return min(total, limit), min(free, max(0.0, limit - used))


def _sees(store: Store, token: Path) -> bool:
    try:
        return token.name in store.names(store.folder)
    except OSError:
        return False


def _why_not_written(store: Store) -> str:
    """store: of the output; where a bucket keeps it, the node's own folder may have to be made yet."""
    probe = store.folder / f".raysft-check-{uuid.uuid4().hex}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        store.push(probe)
        store.remove(probe)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _why_no_answer(uri: str) -> str:
    """Of a tracking server; one that asks for a login answers, too."""
    parts = urlsplit(uri)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/health")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return redacted(str(error) or type(error).__name__)
    finally:
        connection.close()
    return "" if status in (200, 401, 403) else f"its /health answers {status}"


def _has_access(backbone: BackboneConfig) -> bool:
    """Whether a gated backbone has been fetched here, or there is a token to fetch it with."""
    from huggingface_hub import get_token, try_to_load_from_cache

    cached = try_to_load_from_cache(backbone.path, "config.json", revision=backbone.revision)
    return isinstance(cached, str) or bool(get_token())


# --- on the driver ---------------------------------------------------------------------------------------------------


@contextmanager
def _token(config: SweepConfig) -> Iterator[str]:
    """A file in the output folder, or the nearest one above it, and in the bucket, as long as this lasts."""
    folder = config.output.absolute()
    while not folder.is_dir():
        folder = folder.parent
    path = folder / f".raysft-check-{uuid.uuid4().hex}"
    store = Store(folder, config.storage)
    path.write_text("")
    store.push(path)
    try:
        yield str(path)
    finally:
        store.remove(path)


def _asked(config: SweepConfig, token: str) -> Asked:
    from raysft.sweepfile import local_paths

    uri = config.tracking.uri
    served = uri if uri and uri.startswith(("http://", "https://")) else None
    gated = tuple(b for b in config.backbones if b.path.startswith(GATED) and not Path(b.path).is_dir())
    return Asked(token, config.storage, tuple(local_paths(config)), served, gated)


def _ask_all(alive: Sequence[dict[str, Any]], asked: Asked) -> tuple[list[Node], list[InputError]]:
    """The answers, in the nodes' order, and what kept others from answering."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(answer)
    answers = {}
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        answers[task.options(**options).remote(asked)] = node
    _, late = ray.wait(list(answers), num_returns=len(answers), timeout=SECONDS)
    found, refused = [], []
    for reference, node in answers.items():
        name = node["NodeManagerAddress"]
        if reference in late:
            refused.append(_node_error(name, f"did not answer within {SECONDS} s.", "Look at its log, or take it out."))
            ray.cancel(reference, force=True)
            continue
        try:
            told = ray.get(reference)
            found.append(told if told.gpus else replace(told, gpus=gpus_by_ray(node["Resources"])))
        except RayError as error:
            reason = redacted((str(error).strip() or repr(error)).splitlines()[-1])
            refused.append(_node_error(name, f"could not be looked at: {reason}", SAME_VERSIONS))
    return found, refused


def gpus_by_ray(resources: dict[str, float]) -> tuple[Gpu, ...]:
    """Of a node where nvidia-ml-py is missing: Ray knows how many, and mostly of which kind."""
    kind = next((name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")), "GPU")
    device = find_device(kind)
    return (Gpu(kind, device.memory if device else 0.0),) * int(resources.get("GPU", 0))


def _groups(config: SweepConfig, alive: list[dict[str, Any]]) -> tuple[dict[str, int], list[InputError]]:
    """How many groups of each backbone fit at once, and why not one does. An autoscaler may bring its nodes later."""
    from raysft.sweep.capacity import slots_that_fit

    groups, refused = {}, []
    for backbone in config.backbones:
        study = config.for_backbone(backbone.name)
        if study.workers.wait_minutes and study.workers.max_concurrent:
            groups[backbone.name] = study.workers.max_concurrent
            continue
        try:
            groups[backbone.name] = slots_that_fit(study, alive)
        except InputError as error:
            refused.append(error)
    return groups, refused


def problems(node: Node, here: Node) -> Iterator[InputError]:
    """What keeps a node from working for a sweep whose driver runs here."""
    for name, own in here.versions.items():
        if (other := node.versions.get(name, "missing")) != own:
            yield _node_error(node.name, f"has {name} {other}, where this machine has {own}.", SAME_VERSIONS)
    shared = "Set output to a folder that all nodes share under the same path, or storage to a bucket."
    if not node.sees:
        yield _node_error(node.name, "does not see what this machine writes into the output folder.", shared)
    elif node.writes:
        yield _node_error(node.name, f"cannot write into the output folder: {node.writes}.", shared)
    for path in node.missing:
        yield _node_error(node.name, f"has no {path}.", "Put it into a folder that all nodes share.")
    for path in node.locked:
        fix = f"Set HF_TOKEN there, of an account that has accepted its terms, or fetch it: hf download {path}."
        yield _node_error(node.name, f"has no token for {path}, which the hub gives to known users alone.", fix)


def _tracking(config: SweepConfig, here: Node) -> list[InputError]:
    """The driver alone writes to MLflow."""
    if not here.tracking:
        return []
    place = redacted(f"tracking.uri '{config.tracking.uri}'")
    return [InputError(place, f"does not answer: {here.tracking}.", "Start the server, or correct its address.")]


def _host_memory(config: SweepConfig, nodes: Sequence[Node]) -> list[InputError]:
    """Backbones of which the memory of no node holds even one worker's part."""
    largest = max((node.memory for node in nodes), default=0.0)
    found = []
    for backbone in config.backbones:
        study, architecture = config.for_backbone(backbone.name), of_backbone(backbone)
        if not nodes or architecture is None or (needed := memory(study, architecture).host) <= largest:
            continue
        reason = (
            f"a worker needs {needed / 1e9:.3g} GB of host memory, and the largest node has {largest / 1e9:.3g} GB."
        )
        fix = "Offload less (zero.offload), shard more (zero.stage, workers.count), or take nodes with more memory."
        found.append(InputError(f"backbone '{backbone.name}' ({backbone.path})", reason, fix))
    return found


def _node_error(name: str, reason: str, fix: str) -> InputError:
    return InputError(f"node {name}", reason, fix)


def table(nodes: Sequence[Node], groups: dict[str, int], here: Node) -> list[tuple[str, str]]:
    """Rows: a node, then what it has; what is wrong is said by `problems`."""
    rows = [("nodes that answered", f"{len(nodes)}")]
    for node in nodes:
        gpus = {gpu: node.gpus.count(gpu) for gpu in node.gpus}
        told = ", ".join(f"{count} {gpu.name}{_of_memory(gpu)}" for gpu, count in gpus.items())
        same = all(node.versions.get(name) == own for name, own in here.versions.items())
        rows += [
            (f"node {node.name}", told or "no GPU"),
            ("  host memory", f"{node.memory / 1e9:.3g} GB, {node.free / 1e9:.3g} GB of it free"),
            ("  versions", "as on this machine" if same else "differ from this machine's"),
            ("  output folder", "shared" if node.sees and not node.writes else "not shared, or not to be written to"),
            ("  local data and backbones", f"{len(node.missing)} missing" if node.missing else "there"),
        ]
        if here.tracking or node.tracking:
            rows.append(("  tracking server", f"does not answer ({node.tracking})" if node.tracking else "answers"))
        if node.locked:
            rows.append(("  gated backbones", f"no token for {', '.join(node.locked)}"))
    rows += [(f"groups of {name}", f"{count} at once") for name, count in groups.items()]
    return rows


def _of_memory(gpu: Gpu) -> str:
    return f" of {gpu.memory / 1e9:.3g} GB" if gpu.memory else ", whose memory is not known without nvidia-ml-py"
