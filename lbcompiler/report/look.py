"""What all charts of the page share: the colour of each format, axes, and what is left to the page.

Colours of text, lines and backgrounds are the page's (page.css), which knows light from dark."""

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from lbcompiler.config import FLOAT

FLOOR = 1e-9  # of a cost on a logarithmic axis
NARROW = 1.5  # decades of an axis

# By bits: warm below five, green at six, blue at eight; the same pair for INT and FP neighbours.
COLORS = {
    "nvfp4": "#d1495b",
    "nvint4": "#f2a65a",
    "mxfp4": "#8d2f45",
    "mxint4": "#c97b1e",
    "mxfp6": "#2a9d6f",
    "mxfp6_e3m2": "#1d6b52",
    "mxint6": "#8cc152",
    "mxfp8": "#3f6fd8",
    "mxfp8_e5m2": "#5b4bb0",
    "mxint8": "#4fb3d9",
    FLOAT: "#8a8f98",
}

Chart = dict[str, Any]  # {data, layout} of a plotly figure, for page.js


def log_axis(values: Iterable[float]) -> Chart:
    """Powers of ten are named, and 2 and 5 as well where there would be few of those."""
    held = [max(value, FLOOR) for value in values]
    decades = math.log10(max(held) / min(held))
    return {"type": "log", "dtick": 1 if decades > NARROW else "D2", "exponentformat": "power"}


def plain(figure: go.Figure) -> Chart:
    figure.update_layout(template="none", hovermode="closest")
    held = figure.to_plotly_json()
    layout = held["layout"]
    layout.pop("template", None)
    return {"data": held["data"], "layout": layout}
