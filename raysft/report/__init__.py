"""Tracked sweeps as one page: the answer for each backbone, the figures behind it, and what it cost."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from raysft.errors import InputError
from raysft.preflight import check_inside
from raysft.report.across import continuum
from raysft.report.chart import Drawing
from raysft.report.cost import costs
from raysft.report.curves import curves
from raysft.report.listens import listens
from raysft.report.page import Section, page
from raysft.report.tried import heat_maps, over_exponent, over_threshold, parallel
from raysft.results import Study, studies
from raysft.targets import newest, place_of
from raysft.tracking.answer import REPORT, keep_answer
from raysft.verdict import judge

PAGE = "report.html"


def report(
    targets: Sequence[str | Path], output: Path | None, tracking_uri: str | None, log: bool, say: Callable[[str], None]
) -> Path:
    """Write the page and its figures; returns the page. targets: default: the sweep in ./runs that began last.

    output: default: the folder `report` beside the first target's studies. log: to the studies' parent runs, too.
    Raises InputError for what cannot be read or written, TrialFailed where MLflow does not take the report.
    """
    targets = targets or [newest()]
    found = studies(targets, tracking_uri)
    folder = output or _beside(place_of(str(targets[0]), tracking_uri).folder)
    names = _file_names(found)
    judged = [(study, judge(study)) for study in found]
    across = continuum(judged)
    sections = []
    for (study, verdict), name in zip(judged, names, strict=True):
        say(verdict.sentence)
        figures = [
            over_exponent(study, verdict, name),
            over_threshold(study, verdict, name),
            *heat_maps(study, name),
            listens(study, verdict, name),
            curves(study, verdict, name),
            parallel(study, verdict, name),
        ]
        sections.append(Section(study, verdict, figures, costs(study)))
    files = {PAGE: page(sections, across).encode()}
    for figure in [across, *(figure for section in sections for figure in section.figures)]:
        if isinstance(figure, Drawing):
            files |= {f"{figure.name}.png": figure.png, f"{figure.name}.svg": figure.svg.encode()}
    _write(folder, files)
    say(f"Report: {folder / PAGE}")
    for study, verdict in judged if log else []:
        keep_answer(study.uri, study.run_id, verdict.sentence, [folder / name for name in files])
    return folder / PAGE


def _file_names(found: Sequence[Study]) -> list[str]:
    """Of each study its own, of letters that any file system takes."""
    several = len({study.sweep for study in found}) > 1
    names: list[str] = []
    for study in found:
        whole = f"{study.sweep}-{study.backbone}" if several else study.backbone
        name = re.sub(r"[^A-Za-z0-9._-]", "_", whole).strip(".")[:80] or "backbone"
        names.append(name if name not in names else f"{name}-{study.run_id[:8]}")
    return names


def _beside(studies: Path) -> Path:
    """The report's folder. Raises InputError for one that leads elsewhere."""
    check_inside(studies, [studies / REPORT])
    return studies / REPORT


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        fix = "Name another folder with --output."
        raise InputError(str(folder), f"cannot be written: {error.strerror}.", fix) from None
