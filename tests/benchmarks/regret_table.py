"""What each policy loses in each case of the regret benchmark, and the table of it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from regret_cases import Case
from telling import number, table

from raysft.advisor import Evidence, advise
from raysft.capability import Capability
from raysft.objectives import Power


@dataclass
class Study:
    """A case as it was measured: accuracy of each objective by its label, and what it cost."""

    capability: Capability
    probe_seconds: float
    trials: dict[str, Any]
    follow: dict[str, Any] = field(default_factory=dict)

    def accuracy(self, objective: Power) -> float:
        return float(self.trials[objective.label()]["accuracy"])


def read(path: Path) -> dict[Case, Study]:
    """All cases of a file; a later line adds to an earlier one."""
    found: dict[Case, Study] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        case, follow = Case(**row["case"]), row.get("follow", {})
        if "trials" in row:
            found[case] = Study(Capability(**row["capability"]), row["probe_seconds"], row["trials"])
        found[case].follow |= follow
    return found
