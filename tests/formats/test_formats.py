"""The table of formats against the paper's table 1 (arXiv 2510.25602) and OCP MX v1.0."""

import json

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, format_named, table

PAPER = {  # block, largest, smallest, scale, bits per element
    "mxint8": (32, 127, 1, "e8m0", 8.25),
    "mxint6": (32, 31, 1, "e8m0", 6.25),
    "mxint4": (32, 7, 1, "e8m0", 4.25),
    "mxfp8": (32, 448, 2**-9, "e8m0", 8.25),
    "mxfp8_e5m2": (32, 57344, 2**-16, "e8m0", 8.25),
    "mxfp6": (32, 7.5, 0.125, "e8m0", 6.25),
    "mxfp6_e3m2": (32, 28, 2**-4, "e8m0", 6.25),
    "mxfp4": (32, 6, 0.5, "e8m0", 4.25),
    "nvint4": (16, 7, 1, "e4m3", 4.5),
    "nvfp4": (16, 6, 0.5, "e4m3", 4.5),
}


def test_the_ten_formats_in_their_order() -> None:
    assert list(FORMATS) == list(PAPER)
    assert all(fmt.name == name for name, fmt in FORMATS.items())


@pytest.mark.parametrize("name", PAPER)
def test_facts(name: str) -> None:
    fmt = format_named(name)
    assert (fmt.block, fmt.element.max, fmt.element.smallest, fmt.scale, fmt.bits_per_element) == (
        PAPER[name]
    )
    nv = name.startswith("nv")
    assert fmt.has_tensor_scale == nv
    assert fmt.parts == (3 if nv else 2)
    assert fmt.default_rule == ("absmax" if nv else "rceil")
    expected = ("absmax", "four_over_six", "sweep") if nv else ("floor", "rceil", "even", "mse")
    assert fmt.rules == expected


@pytest.mark.parametrize(("k", "mx", "nv"), [(0, 0, 0), (1, 1, 1), (16, 1, 1), (33, 2, 3)])
def test_blocks_of_a_row(k: int, mx: int, nv: int) -> None:
    assert (format_named("mxfp4").blocks(k), format_named("nvfp4").blocks(k)) == (mx, nv)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fp4'.*mxint8.*nvfp4"):
        format_named("fp4")


def test_the_table_is_plain_data() -> None:
    rows = table()
    assert [row["name"] for row in rows] == list(FORMATS)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[-1] == {
        "name": "nvfp4",
        "bits_per_element": 4.5,
        "block": 16,
        "element": "e2m1",
        "element_bits": 4,
        "element_max": 6.0,
        "element_smallest": 0.5,
        "scale": "e4m3",
        "tensor_scale": "float32",
        "rules": ["absmax", "four_over_six", "sweep"],
        "default_rule": "absmax",
    }
