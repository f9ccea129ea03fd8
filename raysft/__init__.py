"""raysft: a Ray-based distributed sweep over probability-based SFT objectives (arXiv 2510.00526)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysft.results import frame

__all__ = ["__version__", "frame"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`raysft.frame(TARGET, ...)`: the trials of sweeps as a pandas table, without importing anything before."""
    if name == "frame":
        from raysft.results import frame

        return frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
