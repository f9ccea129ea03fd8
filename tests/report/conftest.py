"""A made-up sweep of three backbones with all that a report can show, and its report, for tests that only read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysft.config import PAPER_BASELINES, SweepConfig, TrialConfig
from raysft.objectives import Power, build
from raysft.report import report
from raysft.results import Study, studies

BEST = {"strong": 1.0, "mid": 0.4, "weak": 0.0}


@pytest.fixture(scope="package")
def swept(make_sweeps: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """`strong` was confirmed with fresh seeds; `mid` searched exponent, threshold and rate, `weak` exponents alone."""
    made = make_sweeps(tmp_path_factory.mktemp("swept") / "runs")
    config: SweepConfig = made.sweep(*BEST)
    rng = np.random.default_rng(0)
    several = [
        Power(exponent=a, threshold=t, keep=keep)
        for a, t, keep in zip(
            10 ** rng.uniform(-1, 1, 12), rng.uniform(0, 0.6, 12), ["above", "below"] * 6, strict=True
        )
    ]
    trials = {
        "strong": [
            *made.trials(0.3, 3),
            *(
                TrialConfig(objective=objective, learning_rate=1e-3, seed=seed, role="confirm")
                for objective in PAPER_BASELINES
                for seed in (1, 2, 3)
            ),
        ],
        "mid": [
            *made.trials(0.4),
            *(TrialConfig(objective=o, learning_rate=float(10 ** rng.uniform(-4, -2)), seed=0) for o in several),
            TrialConfig(objective=build("focal", gamma=2.0), learning_rate=1e-3, seed=0),
        ],
        "weak": made.trials(0.1, 0.2),
    }
    others = {2: ("KILLED", "stopped early at step 5"), 5: ("FAILED", "the loss is nan")}
    for name, capability in (("strong", 0.85), ("mid", 0.6), ("weak", 0.05)):
        made.track(
            config.for_backbone(name),
            trials[name],
            made.wants(BEST[name]),
            made.capable(capability),
            others=others if name == "weak" else None,
        )
    return config


@pytest.fixture(scope="package")
def found(swept: SweepConfig) -> dict[str, Study]:
    return {study.backbone: study for study in studies([swept.folder])}


@pytest.fixture(scope="package")
def written(swept: SweepConfig) -> Path:
    """The page; what was said lies beside it."""
    said: list[str] = []
    page = report([swept.folder], None, None, True, said.append)
    (page.parent / "said.txt").write_text("\n".join(said))
    return page
