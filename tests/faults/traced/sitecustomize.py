"""Where this folder is on PYTHONPATH, Python imports this at its start: raysft's loop then records its steps.

What is redone after a kill leaves no other trace, because a resumed trial forgets the steps that it takes again.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

LOOP = "raysft.training.loop"


class Recording(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the module of the loop as it is, then puts the record in front of its step."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != LOOP:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        self.loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        self.loader.exec_module(module)  # type: ignore[union-attr]
        step_of_loop = module.Loop._step

        def step(loop: Any, number: int, hooks: Any) -> Any:
            done = step_of_loop(loop, number, hooks)
            if loop.ranks.rank == 0:
                record(loop.folder.name, number + 1)
            return done

        module.Loop._step = step


def record(trial: str, step: int) -> None:
    """One line, whole even where several processes write at once."""
    file = os.open(os.environ["STEPS_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{trial} {step}\n".encode())
    os.close(file)


if "STEPS_FILE" in os.environ:
    sys.meta_path.insert(0, Recording())
