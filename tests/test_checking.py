"""What `raysft check` prints of an estimate, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysft.check import check
from raysft.checking import Setting, check_here, estimate
from raysft.config import SweepConfig
from raysft.devices import named_device
from raysft.errors import InputError
from raysft.sweepfile import load, together

Make = Callable[..., SweepConfig]
SWEEPS = Path(__file__).parents[1] / "sweeps"
ON_GPU = "workers.resources={CPU: 1, GPU: 1}"


def rows_of(file: str, *sets: str, **asked: Any) -> tuple[list[tuple[str, str]], list[InputError]]:
    options = {"address": None, "device": None, "utilisation": 0.4, "price": None} | asked
    return check_here(load(SWEEPS / f"{file}.yaml", sets), **options)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(("name", "backbones"), [("math", 4), ("medical", 4), ("figlet", 4), ("gsm8k", 1)])
def test_every_shipped_sweep_of_the_hub_has_an_estimate(name: str, backbones: int) -> None:
    rows, refused = rows_of(name)
    assert refused == []
    names = [row for row, _ in rows]
    assert sum(row.startswith("estimate for ") for row in names) == backbones
    for row in ("  parameters", "  memory of a worker", "    loss head", "  operations of a trial"):
        assert names.count(row) == backbones
    assert not any("known when the weights are fetched" in value for _, value in rows)
    assert dict(rows)["time and cost"].startswith("name the device")
    assert dict(rows)["how it is estimated"].startswith("An estimate by arithmetic")


def test_a_device_gives_time_and_a_price_cost() -> None:
    """The total is the sum over backbones; a price is of an hour of a device."""
    rows, _ = rows_of("figlet", device="h200", price=2.5)
    busy = [number(value) for name, value in rows if name == "  all trials"]
    assert len(busy) == 4
    table = dict(rows)
    whole = number(table["the whole sweep"])
    assert whole == pytest.approx(sum(busy), rel=0.01)
    assert table["the whole sweep"].endswith("of H200")
    assert number(table["cost"]) == pytest.approx(2.5 * whole, rel=0.01)
    faster = dict(rows_of("figlet", device="h200", utilisation=0.8)[0])
    assert number(faster["the whole sweep"]) == pytest.approx(whole / 2, rel=0.01)
    assert "cost" not in faster


def number(text: str) -> float:
    """about 1,740 h of H200 -> 1740."""
    return float(text.removeprefix("about ").split()[0].rstrip(",").replace(",", ""))


def test_groups_at_once_divide_the_wall_time_alone() -> None:
    one, _ = rows_of("math", "workers.max_concurrent=1", device="h200")
    four, _ = rows_of("math", "workers.max_concurrent=4", device="h200")
    assert dict(one)["the whole sweep"] == dict(four)["the whole sweep"]
    assert dict(one)["  wall time"].endswith("with 1 group at once")
    assert dict(four)["  wall time"].endswith("with 4 groups at once")
    assert number(dict(one)["  wall time"]) == pytest.approx(4 * number(dict(four)["  wall time"]), rel=0.01)
    assert number(dict(one)["  wall time"]) == pytest.approx(number(dict(one)["  all trials"]) / 2, rel=0.01)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    rows, refused = rows_of("math", device="h100")
    assert [error.place.split("'")[1] for error in refused] == ["qwen2.5-math-7b", "deepseek-math-7b", "llama-3.1-8b"]
    assert "a worker needs 92.9 GB of a GPU, which has 83.8 GB." in str(refused[0])
    assert "it fits with workers.count=4; or zero.offload=optimizer; or training.lora={}." in str(refused[0])
    assert str(together(Path("math.yaml"), refused)).startswith("math.yaml: 3 errors:\n  backbone 'qwen2.5-math-7b'")
    assert any("there is room for" in value for _, value in rows)
    rows, refused = rows_of("math", "workers.count=4", device="h100")
    assert refused == []


def test_a_device_for_workers_that_ask_for_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"--device H100: is a GPU, and the workers of backbone 'smollm2-135m'"):
        rows_of("gsm8k", device="h100")
    rows, refused = rows_of("gsm8k", ON_GPU, device="h100")
    assert refused == []
    assert "  time of a trial" in dict(rows)
    with pytest.raises(InputError, match="--device g5: is not known"):
        rows_of("gsm8k", device="g5")


def test_the_steps_of_an_estimate_are_those_of_the_known_rows() -> None:
    """(67,000 - 256 held out) / 256; another data set is not known, and so is its time."""
    rows, _ = rows_of("math", "confirm=null")
    assert dict(rows)["  operations of a trial"].endswith(
        "in 260 steps of training, if the data set has the 67,000 rows that it is known for"
    )
    rows, _ = rows_of("math", "data.train.path=nobody/nothing")
    assert dict(rows)["  time and cost"] == "known when the data are fetched"
    rows, _ = rows_of("math", "data.train.path=nobody/nothing", "training.steps=7")
    assert dict(rows)["  operations of a trial"].endswith("in 7 steps of training")


def test_tasks_of_unknown_size_are_named() -> None:
    rows, _ = rows_of("math", "evaluation.tasks.math500.source.path=nobody/nothing")
    assert dict(rows)["  not counted"] == "completions of math500: their problems are known when fetched"


def test_the_speed_in_fp32_is_not_told() -> None:
    rows, _ = rows_of("gsm8k", ON_GPU, "training.precision=fp32", device="h100")
    assert dict(rows)["  time"].startswith("not told")
    assert "the whole sweep" not in dict(rows)


def test_a_backbone_of_an_unknown_kind_is_left_open(make_config: Make, tiny_backbone: Path) -> None:
    config = make_config(backbones=[{"name": "a", "path": "owner/model"}, {"name": "b", "path": str(tiny_backbone)}])
    found = estimate(config, check(config), Setting())
    assert [value for name, value in found.rows if name == "  parameters"] == [
        "known when the weights are fetched, as is all that follows from them",
        "22,048",
    ]
    assert found.refused == []


def test_a_cluster_says_how_much_memory_and_how_many_groups(make_config: Make) -> None:
    """Rather than what a device of that name mostly has. CUDA alone takes more than the one here."""
    config = make_config(workers={"resources": {"CPU": 1, "GPU": 1}}, training={"precision": "bf16", "steps": 6})
    setting = Setting(named_device("h100"), groups={"tiny": 5}, available=1e9)
    found = estimate(config, check(config), setting)
    assert dict(found.rows)["  wall time"].endswith("with 5 groups at once")
    assert "of a GPU, which has 1 GB." in str(found.refused[0])
    assert "None of more workers, sharding" in found.refused[0].fix
    assert "take a larger device" in found.refused[0].fix


def test_workers_without_a_gpu_may_run_where_there_are_some(make_config: Make) -> None:
    """As found on a cluster: nothing is refused, and no time is told that would be a GPU's."""
    config = make_config()
    found = estimate(config, check(config), Setting(named_device("l4"), groups={"tiny": 5}, available=1e6))
    assert found.refused == []
    assert dict(found.rows)["  time"] == "not told: its workers ask for no GPU"


def test_the_example_in_the_readme_is_what_is_printed() -> None:
    rows, _ = rows_of("math", device="h100", price=2.5)
    start = rows.index(("estimate for qwen2.5-math-7b", ""))
    shown = " ".join((SWEEPS.parent / "README.md").read_text().split())
    for name, value in rows[start : start + 21] + rows[-3:-1]:
        assert " ".join(f"{name} {value}".split()) in shown
    assert rows[start + 20][0] == "  wall time"
    assert rows[-2][0] == "cost"
