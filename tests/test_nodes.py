"""A look at nodes: what this machine says of itself, what is made of answers, and real clusters."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

import raysft
from raysft.checking import check_here
from raysft.config import BackboneConfig, SweepConfig
from raysft.exposure import ALLOW
from raysft.nodes import Asked, Cluster, Gpu, Node, _host_memory, _token, answer, gpus_by_ray, look_at, problems, table
from raysft.sweepfile import dump, load

Make = Callable[..., SweepConfig]
LLAMA = BackboneConfig(name="llama", path="meta-llama/Llama-3.1-8B")


def asked(token: Path, **changes: object) -> Asked:
    return replace(Asked(str(token), None, (), None, ()), **changes)  # type: ignore[arg-type]


# --- what a node says -----------------------------------------------------------------------------------------------


def test_this_machine_answers_for_itself(tmp_path: Path) -> None:
    token, there = tmp_path / "token", tmp_path / "there"
    token.write_text("")
    there.mkdir()
    found = answer(asked(token, paths=(str(there), str(tmp_path / "gone"))))
    assert (found.sees, found.writes, found.missing) == (True, "", (str(tmp_path / "gone"),))
    assert found.versions["torch"] == version("torch")
    assert found.versions["raysft"] == raysft.__version__
    assert found.versions["python"] == sys.version.split()[0]
    assert 1e8 < found.free <= found.memory < 1e14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "token"]  # nothing of its own is left
    token.unlink()
    assert not answer(asked(token)).sees
    (tmp_path / "file").write_text("")
    assert answer(asked(tmp_path / "file" / "token")).writes == "File exists"


def test_an_answer_imports_no_library_that_trains(tmp_path: Path) -> None:
    """A node's task is a process that has just started, on a node that may be at work."""
    program = (
        "import sys\nfrom raysft.nodes import Asked, answer\n"
        f"answer(Asked({str(tmp_path / 'token')!r}, None, (), None, ()))\n"
        "print({'torch', 'transformers', 'ray', 'mlflow', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"/health": 200, "/locked/health": 401}
        self.send_response(known.get(self.path, 500))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def test_a_tracking_server_answers_or_says_why_not(server: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    assert answer(asked(token, tracking=server)).tracking == ""
    assert answer(asked(token, tracking=f"{server}/")).tracking == ""
    assert answer(asked(token, tracking=f"{server}/locked")).tracking == ""  # who asks for a login is there
    assert answer(asked(token, tracking=f"{server}/other")).tracking == "its /health answers 500"


def test_a_tracking_server_that_is_not_there(server: str, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as served:
        port = served.server_address[1]
    assert "refused" in answer(asked(tmp_path / "token", tracking=f"http://127.0.0.1:{port}")).tracking


def test_gated_backbones_need_a_token_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    assert answer(asked(tmp_path / "t", gated=(LLAMA,))).locked == (LLAMA.path,)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    assert answer(asked(tmp_path / "t", gated=(LLAMA,))).locked == ()
    monkeypatch.delenv("HF_TOKEN")
    snapshot = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert answer(asked(tmp_path / "t", gated=(LLAMA,))).locked == ()


def test_the_token_is_in_the_output_folder_while_it_is_needed(make_config: Make, tmp_path: Path) -> None:
    with _token(make_config(output=str(tmp_path / "not" / "made" / "yet"))) as token:
        assert Path(token).parent == tmp_path
        assert Path(token).exists()
    (tmp_path / "runs").mkdir()
    with _token(make_config(output=str(tmp_path / "runs"))) as token:
        assert Path(token).parent == tmp_path / "runs"
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_bucket_stands_in_for_a_shared_folder(make_config: Make, tmp_path: Path, bucket: str) -> None:
    """Another machine has an empty disk, and sees the token in the bucket."""
    with _token(make_config(output=str(tmp_path / "runs"), storage=bucket)) as token:
        elsewhere = tmp_path / "elsewhere" / Path(token).name
        told = answer(asked(elsewhere, storage=bucket))
        assert (told.sees, told.writes) == (True, "")
        assert not answer(asked(elsewhere, storage=f"{bucket}/other")).sees
        assert "does not exist" in answer(asked(elsewhere, storage="s3://no-such-bucket/runs")).writes
    assert not answer(asked(elsewhere, storage=bucket)).sees


# --- what is made of it ---------------------------------------------------------------------------------------------

HERE = Node("head", {"python": "3.11.9", "torch": "2.13.0"}, (), 64e9, 32e9, True, "", (), "", ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": {"python": "3.11.9", "torch": "2.12.1"}}, "has torch 2.12.1, where this machine has 2.13.0."),
        ({"versions": {"python": "3.11.9"}}, "has torch missing, where this machine has 2.13.0."),
        ({"sees": False}, "does not see what this machine writes into the output folder."),
        ({"writes": "Read-only file system"}, "cannot write into the output folder: Read-only file system."),
        ({"missing": ("/data/train.jsonl",)}, "has no /data/train.jsonl."),
        ({"locked": (LLAMA.path,)}, "has no token for meta-llama/Llama-3.1-8B"),
    ],
)
def test_what_is_wrong_with_a_node_is_refused(changes: dict[str, object], said: str) -> None:
    (found,) = problems(replace(HERE, name="worker-3", **changes), HERE)  # type: ignore[arg-type]
    assert str(found).startswith(f"node worker-3: {said}")
    assert found.fix


def test_a_node_like_this_machine_is_fine() -> None:
    assert list(problems(replace(HERE, name="worker-3", gpus=(Gpu("NVIDIA H100", 85e9),)), HERE)) == []


def test_everything_that_is_wrong_is_told_at_once() -> None:
    worker = replace(HERE, sees=False, missing=("/a", "/b"), versions={"python": "3.12.1", "torch": "2.13.0"})
    assert len(list(problems(worker, HERE))) == 4


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"CPU": 8.0}, ()),
        ({"GPU": 2.0, "accelerator_type:H100": 1.0}, ("H100", 2)),
        ({"GPU": 1.0, "accelerator_type:A100-40G": 1.0}, ("A100-40G", 1)),
    ],
)
def test_ray_knows_gpus_where_nobody_else_does(
    resources: dict[str, float], expected: tuple[str, int] | tuple[()]
) -> None:
    found = gpus_by_ray(resources)
    assert [gpu.name for gpu in found] == ([expected[0]] * expected[1] if expected else [])
    assert all(38e9 < gpu.memory < 86e9 for gpu in found)


def test_a_gpu_of_which_nothing_is_known_has_no_memory_to_compare() -> None:
    (gpu,) = gpus_by_ray({"GPU": 1.0})
    assert gpu == Gpu("GPU", 0.0)
    assert Cluster([], [], {}, [replace(HERE, gpus=(gpu,))]).smallest_gpu is None
    small, large = Gpu("A10", 22e9), Gpu("H100", 80e9)
    assert Cluster([], [], {}, [replace(HERE, gpus=(gpu, large)), replace(HERE, gpus=(small,))]).smallest_gpu == small


def test_host_memory_is_compared_with_the_largest_node(make_config: Make) -> None:
    backbone = {"name": "m", "path": "Qwen/Qwen2.5-7B"}
    config = make_config(backbones=[backbone], workers={"resources": {"GPU": 1}})
    assert _host_memory(config, [replace(HERE, memory=30e9), replace(HERE, memory=61e9)]) == []
    (found,) = _host_memory(config, [replace(HERE, memory=30e9), replace(HERE, memory=40e9)])
    assert "a worker needs 60.9 GB of host memory, and the largest node has 40 GB." in str(found)
    assert _host_memory(config, []) == []


def test_the_table_has_a_line_for_each_finding() -> None:
    worker = replace(HERE, name="w", gpus=(Gpu("NVIDIA H100", 85.5e9),) * 8, missing=("/a",), locked=("meta-llama/x",))
    rows = table([HERE, worker], {"big": 3}, HERE)
    assert rows == [
        ("nodes that answered", "2"),
        ("node head", "no GPU"),
        ("  host memory", "64 GB, 32 GB of it free"),
        ("  versions", "as on this machine"),
        ("  output folder", "shared"),
        ("  local data and backbones", "there"),
        ("node w", "8 NVIDIA H100 of 85.5 GB"),
        ("  host memory", "64 GB, 32 GB of it free"),
        ("  versions", "as on this machine"),
        ("  output folder", "shared"),
        ("  local data and backbones", "1 missing"),
        ("  gated backbones", "no token for meta-llama/x"),
        ("groups of big", "3 at once"),
    ]


# --- real clusters --------------------------------------------------------------------------------------------------


def test_a_cluster_of_one_node_is_fine_and_left_as_it_was(ray_cluster: None, make_config: Make) -> None:
    config = make_config()
    config.output.mkdir()
    found = look_at(config, None)
    assert found.refused == []
    assert found.groups == {"tiny": 2}
    assert len(found.nodes) == 1
    assert found.nodes[0].versions["ray"] == version("ray")
    assert list(config.output.iterdir()) == []


def test_what_does_not_fit_the_cluster_is_refused(ray_cluster: None, make_config: Make, server: str) -> None:
    config = make_config(workers={"count": 3}, training={"steps": 6, "global_batch_size": 9}, tracking={"uri": server})
    assert [error.place for error in look_at(config, None).refused] == ["workers"]
    config = make_config(tracking={"uri": f"{server}/other"})
    (refused,) = look_at(config, None).refused
    assert str(refused).startswith(f"tracking.uri '{server}/other': does not answer: its /health answers 500.")


def test_the_command_looks_at_the_cluster(ray_cluster: None, make_config: Make, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(make_config()))
    rows, refused = check_here(load(file), "auto", None, 0.4, None)
    assert refused == []
    assert dict(rows)["nodes that answered"] == "1"
    assert dict(rows)["groups of tiny"] == "2 at once"


TWO_NODES = """
import json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from raysft.nodes import look_at
from raysft.sweepfile import load

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
found = look_at(load(Path(sys.argv[1])), None)
print(json.dumps({"nodes": len(found.nodes), "groups": found.groups, "refused": [str(e) for e in found.refused]}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_every_node_is_asked(make_config: Make, tmp_path: Path) -> None:
    """The head, which has no processors to give, and two others."""
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(make_config()))
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(file)],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"nodes": 3, "groups": {"tiny": 3}, "refused": []}


def test_a_cluster_of_another_machine_needs_a_token(make_config: Make, tmp_path: Path) -> None:
    """Refused before anything is sent there."""
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(make_config()))
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", ALLOW)}
    command = [sys.executable, "-m", "raysft", "check", str(file), "--address", "10.0.0.1:6379"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("raysft: Ray cluster 10.0.0.1:6379: is on another machine")
