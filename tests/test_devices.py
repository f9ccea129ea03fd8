"""Devices by the names that drivers and users give them."""

import pytest

from raysft.devices import DEVICES, GIB, find_device, named_device
from raysft.errors import InputError


@pytest.mark.parametrize(
    ("driver", "name", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 78),
        ("NVIDIA H100 PCIe", "H100 PCIe", 78),
        ("NVIDIA H200", "H200", 139),
        ("NVIDIA A100-SXM4-80GB", "A100", 78),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB", 39),
        ("A100-40G", "A100-40G", 39),
        ("NVIDIA A10G", "A10G", 22),
        ("NVIDIA A10", "A10", 22),
        ("NVIDIA L40S", "L40S", 44),
        ("NVIDIA L40", "L40", 44),
        ("NVIDIA L4", "L4", 22),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 23),
    ],
)
def test_a_driver_names_a_device(driver: str, name: str, memory: int) -> None:
    device = find_device(driver)
    assert device is not None
    assert (device.name, device.memory) == (name, memory * GIB)


def test_every_device_is_found_by_its_own_name() -> None:
    for device in DEVICES:
        assert find_device(device.name) == named_device(device.name.lower().replace(" ", "-")) == device
    assert find_device("Quadro 4000") is None


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"--device h10: is not known\. Did you mean 'H100'\?"):
        named_device("h10")
