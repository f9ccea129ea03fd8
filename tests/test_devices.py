"""Devices by the names that drivers and users give them."""

import pytest

from raysft.devices import DEVICES, find_device, named_device
from raysft.errors import InputError


@pytest.mark.parametrize(
    ("driver", "name", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 80e9),
        ("NVIDIA H100 PCIe", "H100 PCIe", 80e9),
        ("NVIDIA H200", "H200", 141e9),
        ("NVIDIA A100-SXM4-80GB", "A100", 80e9),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB", 40e9),
        ("NVIDIA A10G", "A10G", 24e9),
        ("NVIDIA A10", "A10", 24e9),
        ("NVIDIA L40S", "L40S", 48e9),
        ("NVIDIA L40", "L40", 48e9),
        ("NVIDIA L4", "L4", 24e9),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 24e9),
    ],
)
def test_a_driver_names_a_device(driver: str, name: str, memory: float) -> None:
    device = find_device(driver)
    assert device is not None
    assert (device.name, device.memory) == (name, memory)


def test_every_device_is_found_by_its_own_name() -> None:
    for device in DEVICES:
        assert find_device(device.name) == named_device(device.name.lower().replace(" ", "-")) == device
    assert find_device("Quadro 4000") is None


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"--device h10: is not known\. Did you mean 'H100'\?"):
        named_device("h10")
