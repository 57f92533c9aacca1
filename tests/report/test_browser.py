"""The page in a browser: it draws, says nothing wrong, asks nobody for anything, and is usable."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbcompiler.report.analysis import Analysis
from lbcompiler.report.page import plotly_script, write_page
from tests.report.build import analysis, without_budget
from tests.report.chromium import BROWSER, DRAWN, READY, Page

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")

ROWS = "[...document.querySelectorAll('#layer-table tbody tr')].filter(row => !row.hidden).length"
SHOWN = "charts.qsnr.data.filter(trace => trace.visible).map(trace => trace.name).join()"

Open = Callable[[Analysis], Page]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the page of an analysis; at the end the browser has found nothing wrong in any."""
    pages: list[Page] = []

    def open_page(found: Analysis) -> Page:
        path = tmp_path / f"{len(pages)}.html"
        write_page(found, path, plotly_script())
        pages.append(Page(path, tmp_path / f"profile{len(pages)}"))
        pages[-1].wait_for(READY)
        return pages[-1]

    yield open_page
    for page in pages:
        with page:
            page.check()


def test_every_chart_is_drawn_and_the_switches_work(opened: Open) -> None:
    page = opened(analysis())
    assert set(page.value(DRAWN)) == {"front", "plans", "sensitivity", "qsnr", "shapes"}
    assert page.value(SHOWN) == "weight plain"
    for name, value in (("tensor", "activation"), ("view", "gain")):
        page.value(f"document.querySelector('input[name={name}][value={value}]').click()")
    assert page.value(SHOWN) == "activation gain"
    assert page.value("document.querySelectorAll('#qsnr .heatmaplayer .hm').length") == 1
    assert page.value("charts.qsnr.data[3].customdata[2][1]") == "layers.2.up"


def test_light_and_dark(opened: Open) -> None:
    page = opened(analysis())
    colors = []
    for scheme in ("light", "dark"):
        page.emulate(scheme)
        text = "getComputedStyle(document.documentElement).getPropertyValue('--text').trim()"
        page.wait_for(f"document.getElementById('front').layout.font.color === {text}")
        colors.append(page.value("document.getElementById('front').layout.font.color"))
    assert colors[0] != colors[1]


def test_five_hundred_layers_scroll_below_their_headings_and_can_be_filtered(opened: Open) -> None:
    page = opened(analysis(500, "/model/layers.{}/mlp/gate_proj/MatMul"))
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    box = "document.querySelector('#qsnr').parentElement"
    assert page.value(f"{box}.clientHeight <= innerHeight && {box}.scrollHeight > 8000")
    page.value(f"{box}.scrollTop = 5000")
    top = f"{box}.querySelector('.columns').getBoundingClientRect().top"
    assert page.value(f"Math.abs({top} - {box}.getBoundingClientRect().top) < 3")
    assert page.value(ROWS) == 500
    page.value(
        "{const box = document.getElementById('filter'); box.value = 'layers.49';"
        "box.dispatchEvent(new Event('input'))}"
    )
    assert page.value(ROWS) == 11  # 49 and 490 to 499


def test_hostile_names_stay_text(opened: Open) -> None:
    page = opened(without_budget(analysis(name="</script><script>boom()</script><b>{}")))
    assert page.value("document.querySelector('#layer-table td').textContent").startswith(
        "</script>"
    )
    assert page.value("document.querySelectorAll('b').length") == 0


def test_what_goes_wrong_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.html"
    path.write_text("<script>console.error('one'); fetch('http://127.0.0.1:9/'); boom()</script>")
    with Page(path, tmp_path / "profile") as page:
        page.wait_for("document.readyState === 'complete'")
        assert any("one" in text for text in page.wrong)
        assert any("boom" in text for text in page.wrong)
        assert "http://127.0.0.1:9/" in page.requests
