"""What follows a search: its winner and the paper's baselines with other seeds, on problems that it never saw.

The best of many trials is partly the luckiest; on these problems and with these seeds it had no such choice.
"""

from collections.abc import Sequence

from raysft.config import PAPER_BASELINES, SearchConfig, SweepConfig, TrialConfig
from raysft.sweep.ledger import TrialRow


def best_of(rows: Sequence[TrialRow], search: SearchConfig) -> TrialRow | None:
    """The search's winner: of what ran to its end, baselines included, the first with the best metric."""
    sign = 1 if search.mode == "max" else -1
    finished = [r for r in rows if r.trial.role != "confirm" and r.status == "FINISHED" and search.metric in r.metrics]
    return max(finished, key=lambda row: sign * row.metrics[search.metric], default=None)


def confirm_trials(config: SweepConfig, rows: Sequence[TrialRow]) -> list[TrialConfig]:
    """All of them, once the trials of the search have ended (rows); none where nothing finished, or none are wanted."""
    best = best_of(rows, config.search)
    if config.confirm is None or best is None:
        return []
    rate = config.training.learning_rate
    compared = [TrialConfig(objective=objective, learning_rate=rate, seed=0) for objective in PAPER_BASELINES]
    if all((best.trial.objective, best.trial.learning_rate) != (c.objective, c.learning_rate) for c in compared):
        compared.append(best.trial)
    seeds = range(config.seed + 1, config.seed + 1 + config.confirm.seeds)
    return [trial.model_copy(update={"seed": seed, "role": "confirm"}) for seed in seeds for trial in compared]


def most_confirm_trials(config: SweepConfig) -> int:
    """How many there can be, while the winner is not known."""
    return config.confirm.seeds * (len(PAPER_BASELINES) + 1) if config.confirm else 0
