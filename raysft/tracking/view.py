"""How MLflow's UI opens on a sweep: which columns and charts it shows, without being set up.

The UI keeps such a view, when somebody shares one, as a tag of the experiment; its address then names the tag.
"""

import json
from typing import Any, Literal

KEY = "raysft"
VIEW = f"mlflow.sharedViewState.{KEY}"  # the experiment's tag
PARAMS = ("backbone", "exponent", "threshold")
COLUMNS = [f"params.`{name}`" for name in ("backbone", "objective", *PARAMS[1:])]
SECTION = "raysft-objectives"


def view(metric: str, best: Literal["max", "min"]) -> str:
    """The tag's value: trials alone, since the UI draws no child of a parent that is folded; the best first."""
    axes = {name: {"key": name, "type": "PARAM"} for name in PARAMS} | {metric: {"key": metric, "type": "METRIC"}}
    exponent, threshold, score = axes["exponent"], axes["threshold"], axes[metric]
    charts = [
        _chart("PARALLEL", f"{metric} of each objective", selectedParams=list(PARAMS), selectedMetrics=[metric]),
        _chart("SCATTER", f"{metric} over the exponent", xaxis=exponent, yaxis=score),
        _chart("CONTOUR", f"{metric} over exponent and threshold", xaxis=exponent, yaxis=threshold, zaxis=score),
    ]
    state = {
        "searchFilter": "tags.role != 'study'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": best == "min",
        "selectedColumns": [*COLUMNS, f"metrics.`{metric}`", "metrics.`capability/mean_probability`"],
        "runsHiddenMode": "SHOW_ALL",  # else the charts show the first ten
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": SECTION, "name": "Objectives", "display": True, "isReordered": True, "columns": 2}
        ],
        "isAccordionReordered": True,
    }
    return json.dumps(state)


def _chart(kind: str, title: str, **axes: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"raysft-{kind.lower()}",
        "displayName": title,
        "metricSectionId": SECTION,
        "runsCountToCompare": 1000,
        "showAllRuns": True,
        "deleted": False,
        "isGenerated": False,
        **axes,
    }


def address(server: str, experiment_id: str, charts: bool = False) -> str:
    """Of an experiment's runs in the UI, in the view above."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}{mode}"
