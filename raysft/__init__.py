"""raysft: a Ray-based distributed sweep over probability-based SFT objectives (arXiv 2510.00526)."""

__version__ = "0.1.0"
