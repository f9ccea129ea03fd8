"""The contract of an objective, and the one way to make one by name."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from raysft.errors import InputError, did_you_mean

IGNORE_INDEX = -100
_REGISTRY: dict[str, Callable[..., "Objective"]] = {}


class Objective(ABC):
    """A non-increasing f of the target's probability p, per token (arXiv 2510.00526, Eq. 2).

    Both methods take log p (never p, which rounds to 0 and 1), shape [N], and return shape [N] in its dtype.
    Tokens that `keeps` leaves out have loss 0 and weight 0.
    """

    @abstractmethod
    def loss(self, logp: torch.Tensor) -> torch.Tensor:
        """f(p) of each token: [N] -> [N]."""

    @abstractmethod
    def weight(self, logp: torch.Tensor) -> torch.Tensor:
        """s(p) = -f'(p) p of each token: [N] -> [N].

        The gradient with respect to the logits is s(p) (softmax - onehot) (Lemma 3.1), so s is all that a head needs.
        """

    def keeps(self, logp: torch.Tensor) -> torch.Tensor:
        """Which tokens are learned from: [N] -> bool [N]."""
        return torch.ones_like(logp, dtype=torch.bool)


def register(name: str) -> Callable[[type[Objective]], type[Objective]]:
    def add(cls: type[Objective]) -> type[Objective]:
        _REGISTRY[name] = cls
        return cls

    return add


def build(name: str, **params: Any) -> Objective:
    """The objective `name` with its parameters. Raises InputError for an unknown name, parameter or value."""
    place = f"objective '{name}'"
    if name not in _REGISTRY:
        raise InputError(place, "is unknown.", did_you_mean(name, list(_REGISTRY)))
    valid = list(inspect.signature(_REGISTRY[name]).parameters)
    if unknown := next((key for key in params if key not in valid), None):
        raise InputError(place, f"has no parameter '{unknown}'.", did_you_mean(unknown, valid))
    try:
        return _REGISTRY[name](**params)
    except TypeError as error:
        raise InputError(
            place, f"refuses its parameters: {error}.", "Give numbers where numbers are asked for."
        ) from None
