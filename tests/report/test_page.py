"""The report's page as a browser shows it: on a phone, on a desk, and on paper."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

Page = Any  # playwright's, from the fixture of conftest.py

# Of each drawing: its place, the size of its smallest text, and the texts that reach beyond its edge.
DRAWINGS = """() => [...document.querySelectorAll('.drawing svg')].map(svg => {
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
    const scale = box.width / svg.viewBox.baseVal.width;
    const outside = text => {
        const at = text.getBoundingClientRect();
        return at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1;
    };
    return {
        left: box.left, right: box.right, width: box.width, height: box.height,
        smallest: scale * Math.min(...texts.map(text => parseFloat(getComputedStyle(text).fontSize))),
        cut: texts.filter(outside).map(text => text.textContent),
    };
})"""
WIDEST = "() => document.documentElement.scrollWidth"


def shown(page: Page, written: Path, width: int) -> list[dict[str, Any]]:
    """The drawings of the report, once it is open at this width."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(written.as_uri())
    drawings: list[dict[str, Any]] = page.evaluate(DRAWINGS)
    return drawings


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_every_figure_is_whole(page: Page, written: Path, width: int) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    drawings = shown(page, written, width)
    assert asked == [written.as_uri()], "nothing is fetched"
    assert len(drawings) == page.locator("figure").count() > 10
    for drawing in drawings:
        assert 0 <= drawing["left"] < drawing["right"] <= width
        assert drawing["width"] > 300
        assert drawing["height"] > 200
        assert drawing["smallest"] >= 8, "CSS pixels"
        assert drawing["cut"] == []
    assert page.evaluate(WIDEST) <= width
    for details in page.locator("summary").all():
        details.click()
    assert page.get_by_text("the loss is nan").first.is_visible()
    assert page.evaluate(WIDEST) <= width, "wide tables scroll by themselves"


def test_on_paper_every_figure_stays_whole(page: Page, written: Path) -> None:
    page.emulate_media(media="print")
    drawings = shown(page, written, 700)  # A4 without its margins
    assert all(0 <= drawing["left"] < drawing["right"] <= 700 and drawing["cut"] == [] for drawing in drawings)
    kept = page.evaluate("() => [...document.querySelectorAll('figure')].map(f => getComputedStyle(f).breakInside)")
    assert set(kept) == {"avoid"}
    assert page.pdf(format="A4").startswith(b"%PDF")
