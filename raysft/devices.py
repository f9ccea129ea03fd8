"""What GPUs can do, as their makers state it. Needs neither torch nor ray."""

from dataclasses import dataclass

from raysft.errors import InputError, did_you_mean

GIB = 2**30
UTILISATION = 0.4  # of what makers state, where nobody says otherwise: what well-kept training reaches


@dataclass(frozen=True)
class Device:
    """peak: dense bf16 operations a second; bandwidth: bytes of its memory a second; memory: bytes for programs."""

    name: str
    peak: float
    bandwidth: float
    memory: float


# By a part of the name that the driver or Ray gives; the first that fits counts, so longer names come first. Memory is
# what the driver leaves of what is printed on the box, rounded down.
DEVICES = (
    Device("H200", 989e12, 4.8e12, 139 * GIB),
    Device("H100 PCIe", 756e12, 2.0e12, 78 * GIB),
    Device("H100", 989e12, 3.35e12, 78 * GIB),
    Device("A100-SXM4-40GB", 312e12, 1.555e12, 39 * GIB),
    Device("A100-PCIE-40GB", 312e12, 1.555e12, 39 * GIB),
    Device("A100-40G", 312e12, 1.555e12, 39 * GIB),
    Device("A100", 312e12, 2.0e12, 78 * GIB),
    Device("L40S", 362e12, 0.864e12, 44 * GIB),
    Device("L40", 181e12, 0.864e12, 44 * GIB),
    Device("L4", 121e12, 0.3e12, 22 * GIB),
    Device("A10G", 70e12, 0.6e12, 22 * GIB),
    Device("A10", 125e12, 0.6e12, 22 * GIB),
    Device("B200", 2250e12, 8.0e12, 177 * GIB),
    Device("RTX 4090", 165e12, 1.008e12, 23 * GIB),
    Device("RTX 3090", 71e12, 0.936e12, 23 * GIB),
)


def find_device(name: str) -> Device | None:
    """Of a driver's name, such as NVIDIA A100-SXM4-80GB; None for one that is not in the list."""
    return next((device for device in DEVICES if device.name.casefold() in name.casefold()), None)


def named_device(name: str) -> Device:
    """Of what a user calls it: h100, rtx-4090. Raises InputError for one that is not in the list."""
    asked = name.replace("-", " ").replace("_", " ").casefold()
    for device in DEVICES:
        if device.name.replace("-", " ").casefold() == asked:
            return device
    raise InputError(f"--device {name}", "is not known.", did_you_mean(asked.upper(), [d.name for d in DEVICES]))
