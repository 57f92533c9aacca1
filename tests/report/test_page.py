"""The page as text: self-contained, every name escaped, something said where nothing is chosen."""

import json
import re
import sys
from pathlib import Path

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.report.look import COLORS
from lbcompiler.report.page import page, plotly_script, write_page
from lbcompiler.report.rows import NAME_LENGTH, shortened
from tests.report.build import analysis, without_budget

HOSTILE = "</script><script>alert('{}')</script>&<b>"
SCRIPT = "/* plotly.js */"


def charts_of(text: str) -> dict[str, dict[str, object]]:
    found = re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    charts: dict[str, dict[str, object]] = json.loads(found[1])
    return charts


def test_the_page_loads_nothing() -> None:
    text = page(analysis(), SCRIPT)
    assert re.findall(r"""(?:src|href)\s*=\s*(?!["']?data:,)""", text) == []
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_names_are_escaped_everywhere() -> None:
    text = page(analysis(name=HOSTILE), SCRIPT)
    assert "<script>alert" not in text
    assert "<b>" not in text
    labels = charts_of(text)["qsnr"]["layout"]["yaxis"]["ticktext"]  # type: ignore[index]
    assert all("<" not in label for label in labels)


def test_every_chart_has_its_place() -> None:
    text = page(analysis(), SCRIPT)
    charts = charts_of(text)
    assert set(charts) == {"front", "plans", "sensitivity", "qsnr", "shapes"}
    for name in charts:
        assert f'id="{name}"' in text


def test_what_was_chosen_and_why() -> None:
    text = page(analysis(), SCRIPT)
    assert "the compiler would choose" in text
    assert "it helps" in text
    assert "The best single format within these bits, mxfp6" in text


def test_without_a_budget_nothing_is_said_to_be_chosen() -> None:
    text = page(without_budget(analysis()), SCRIPT)
    assert "the compiler would choose" not in text
    assert "pick a point" in text
    assert "it helps" not in text


def test_models_without_logits_show_qsnr() -> None:
    charts = charts_of(page(analysis(kl=False), SCRIPT))
    layout = json.dumps(charts["front"]["layout"])
    assert "QSNR of the worst output" in layout
    assert '"log"' not in layout


def test_numbers_are_left_out_of_large_heat_maps() -> None:
    small, large = (charts_of(page(analysis(n), SCRIPT))["qsnr"]["data"] for n in (20, 500))
    assert all("texttemplate" in trace for trace in small)  # type: ignore[attr-defined]
    assert not any("texttemplate" in trace for trace in large)  # type: ignore[attr-defined]


def test_five_hundred_layers_are_a_page_of_two_megabytes() -> None:
    assert len(page(analysis(500, "/model/layers.{}/mlp/gate_proj/MatMul"), SCRIPT)) < 2e6


def test_every_format_has_a_color_of_its_own() -> None:
    assert set(FORMATS) <= set(COLORS)
    assert len(set(COLORS.values())) == len(COLORS)


def test_long_names_keep_both_ends() -> None:
    name = "/encoder/" + "nested/" * 20 + "dense/MatMul"
    short = shortened(name)
    assert len(short) == NAME_LENGTH
    assert name.startswith(short.split("…")[0])
    assert name.endswith(short.split("…")[1])
    assert shortened("short") == "short"


def test_plotly_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install 'lbcompiler\[report\]'"):
        plotly_script()


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_page(analysis(), tmp_path / "missing" / "r.html", SCRIPT)
    write_page(analysis(), tmp_path / "r.html", SCRIPT)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
