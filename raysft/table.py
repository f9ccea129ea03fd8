"""The closing table of a sweep: one row a backbone, the baselines and the best found."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raysft.config import PAPER_BASELINES, SweepConfig

if TYPE_CHECKING:
    from raysft.sweep.driver import StudyResult
    from raysft.sweep.ledger import TrialRow


def result_table(results: "list[StudyResult]", config: SweepConfig) -> Table:
    """Fits 80 columns for names of up to 12 characters."""
    metric = config.search.metric
    table = Table(title=f"{config.name}: {metric}", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("backbone", no_wrap=True)
    table.add_column("capability", justify="right", no_wrap=True)
    baselines = [b for b in PAPER_BASELINES if any(_of(r, b, metric) for r in results)]
    for baseline in baselines:
        table.add_column(baseline.label(), justify="right")
    table.add_column("best", justify="right")
    table.add_column("objective")
    for result in results:
        best = result.best
        found = (f"{best.metrics[metric]:.3f}", best.trial.objective.label()) if best else ("", "none finished")
        cells = [_of(result, baseline, metric) for baseline in baselines]
        table.add_row(result.backbone, f"{result.capability.mean_probability:.3f}", *cells, *found)
    return table


def _of(result: "StudyResult", objective: object, metric: str) -> str:
    """The metric of the trial with this objective, or an empty string."""
    row: TrialRow | None = next((r for r in result.trials if r.trial.objective == objective), None)
    if row is None:
        return ""
    if row.status == "FINISHED":
        return f"{row.metrics[metric]:.3f}"
    return "to go on" if row.status == "INTERRUPTED" else row.status.lower()
