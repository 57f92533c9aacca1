"""Analysis -> plotly figures with a row for each layer.

Rows stand from top to bottom in the page and have one height, so that a model of hundreds scrolls;
the columns of heat maps are named by the page, above what scrolls (`Columns`). Names of layers are
escaped: plotly reads tags in its labels. `names` beside {data, layout} are the customdata of every
trace: one a row, said once."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from lbcompiler.formats import FORMATS
from lbcompiler.report.analysis import Analysis, PlanFigures, members_of, tensor_of
from lbcompiler.report.look import COLORS, FLOOR, Chart, log_axis, plain

ROW = 18  # pixels of a layer
NAME_LENGTH = 44  # characters on the left; the middle of longer names is left out
NAME_PIXELS = 7  # of a character there
RIGHT = 84  # pixels, of the colour bar
NUMBERED = 2500  # cells of a heat map that have their number written in
LOUDEST_DB = 80.0  # of the colors: a tensor that a format holds exactly has no end
WARM_TO_COOL = [[0, "#ee8866"], [0.35, "#f8d48a"], [0.65, "#e3efb2"], [1, "#77c9b8"]]  # all light


@dataclass(frozen=True)
class Columns:
    """The names above a heat map's columns, which lie between two margins, in pixels."""

    names: tuple[str, ...]
    left: int
    right: int = RIGHT


def qsnr(analysis: Analysis) -> tuple[Chart, Columns]:
    """Layers x formats: six heat maps, of which the page shows one: weight and activation, each
    plain, rotated, and what the rotation gains.
    """
    names = [layer.name for layer in analysis.layers]
    columns = Columns(tuple(FORMATS), _name_width(names))
    figure = go.Figure()
    for which in ("weight", "activation"):
        tensors = [tensor_of(layer, which) for layer in analysis.layers]
        plain = [[t.qsnr_db[f] for f in columns.names] for t in tensors]
        rotated = [[t.qsnr_hadamard_db[f] for f in columns.names] for t in tensors]
        gain = [
            [None if p is None or r is None else r - p for p, r in zip(*rows, strict=True)]
            for rows in zip(plain, rotated, strict=True)
        ]
        for view, z in (("plain", plain), ("hadamard", rotated), ("gain", gain)):
            figure.add_trace(
                _heat_map(
                    z,
                    names,
                    columns,
                    axis="coloraxis2" if view == "gain" else "coloraxis",
                    visible=(which, view) == ("weight", "plain"),
                    name=f"{which} {view}",
                )
            )
    held = [t.z for t in figure.data if t.coloraxis == "coloraxis"]
    known = [v for z in held for row in z for v in row if v is not None]
    figure.update_layout(
        coloraxis={
            "colorscale": WARM_TO_COOL,
            "colorbar": _color_bar(len(names), "dB"),
            "cmin": min(known, default=0.0),
            "cmax": min(LOUDEST_DB, max(known, default=1.0)),
        },
        coloraxis2={
            "colorscale": "RdBu",
            "cmid": 0,
            "colorbar": _color_bar(len(names), "dB gained"),
        },
    )
    chart = _of_layers(figure, names, columns)
    return chart | {"names": [escape(name) for name in names]}, columns


def _heat_map(
    z: Sequence[Sequence[float | None]],
    names: Sequence[str],
    columns: Columns,
    axis: str,
    visible: bool,
    name: str,
) -> go.Heatmap:
    rounded = [[None if v is None else round(v, 2) for v in row] for row in z]
    numbered = len(names) * len(columns.names) <= NUMBERED
    return go.Heatmap(
        z=rounded,
        x=list(columns.names),
        y=list(range(len(names))),
        coloraxis=axis,
        visible=visible,
        name=name,
        xgap=1,
        ygap=1,
        texttemplate="%{z:.1f}" if numbered else None,
        textfont={"size": 10},
        hovertemplate="%{customdata}<br>%{x}: %{z:.2f} dB<extra></extra>",
    )


def plans(analysis: Analysis) -> tuple[Chart, Columns]:
    """Groups x measured plans: the format of each; the chosen plan first."""
    shown = [p for p in (analysis.chosen,) if p is not None]
    shown += [plan for plan in analysis.front if not any(plan.plan == s.plan for s in shown)]
    groups = sorted(analysis.groups, key=_model_order(analysis))
    names = [group.name for group in groups]
    columns = Columns(tuple(_heading(plan, analysis) for plan in shown), _name_width(names))
    used = [f for f in COLORS if any(f in plan.plan.values() for plan in shown)]
    cells = [[plan.plan[group.name] for plan in shown] for group in groups]
    step = 1 / len(used)
    figure = go.Figure(
        go.Heatmap(
            z=[[used.index(cell) for cell in row] for row in cells],
            y=list(range(len(names))),
            customdata=[
                [[escape(members_of(group.layers)), cell] for cell in row]
                for group, row in zip(groups, cells, strict=True)
            ],
            zmin=-0.5,
            zmax=len(used) - 0.5,
            colorscale=[
                [at, COLORS[name]]
                for i, name in enumerate(used)
                for at in (i * step, min(1.0, (i + 1) * step))
            ],
            colorbar=_color_bar(len(names))
            | {"tickvals": list(range(len(used))), "ticktext": used, "ticks": ""},
            xgap=2,
            ygap=1,
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    )
    return _of_layers(figure, names, columns), columns


def _heading(plan: PlanFigures, analysis: Analysis) -> str:
    """`5.02 bits`, `chosen` before it."""
    said = "chosen, " if plan is analysis.chosen else ""
    return f"{said}{plan.effective_bits:.2f} bits"


def sensitivity(analysis: Analysis) -> Chart:
    """Groups, the most sensitive first, with a dot for what each format costs there alone."""
    groups = analysis.groups
    names = [members_of(group.layers) for group in groups]
    figure = go.Figure()
    for i, option in enumerate(groups[0].options):
        figure.add_trace(
            go.Scatter(
                x=[max(group.options[i].cost, FLOOR) for group in groups],
                y=list(range(len(groups))),
                name=option.name,
                mode="markers",
                marker={
                    "color": COLORS[option.format],
                    "size": 8,
                    "symbol": "diamond-open" if option.is_split else "circle",
                },
                customdata=[
                    [escape(name), f"{group.options[i].cost:.3g}", f"{group.options[i].error:.3g}"]
                    for name, group in zip(names, groups, strict=True)
                ],
                hovertemplate=f"%{{customdata[0]}}<br>{option.name}: %{{customdata[1]}}"
                "<br>its own output error %{customdata[2]}<extra></extra>",
            )
        )
    chart = _of_layers(figure, names, None)
    chart["layout"] |= {
        "xaxis": {
            **log_axis([option.cost for group in groups for option in group.options]),
            "side": "top",
            "title": {"text": analysis.cost_name, "standoff": 6},
        },
        "legend": {"orientation": "v", "x": 1.01, "y": 1, "tracegroupgap": 0},
    }
    chart["layout"]["margin"] |= {"t": 64, "r": 110}
    chart["layout"]["height"] += 64
    return chart


def _of_layers(figure: go.Figure, names: Sequence[str], columns: Columns | None) -> Chart:
    """A row of ROW pixels for each name, the first on top."""
    figure.update_layout(
        height=ROW * len(names) + 12,
        margin={"l": _name_width(names), "r": RIGHT, "t": 4, "b": 8},
        yaxis={
            "tickvals": list(range(len(names))),
            "ticktext": [escape(shortened(name)) for name in names],
            "range": [len(names) - 0.5, -0.5],
            "tickfont": {"size": 11},
            "ticks": "",
            "showgrid": columns is None,
            "fixedrange": True,
        },
    )
    if columns is not None:
        figure.update_xaxes(visible=False, fixedrange=True)
    return plain(figure)


def _name_width(names: Sequence[str]) -> int:
    return NAME_PIXELS * max(len(shortened(name)) for name in names) + 12


def shortened(name: str) -> str:
    """Its two ends, where it is long: both tell layers apart."""
    if len(name) <= NAME_LENGTH:
        return name
    head = (NAME_LENGTH - 1) // 3
    return f"{name[:head]}…{name[head + 1 - NAME_LENGTH :]}"


def _model_order(analysis: Analysis) -> Any:
    position = {layer.name: i for i, layer in enumerate(analysis.layers)}
    return lambda group: position[group.name]


def _color_bar(rows: int, title: str = "") -> Chart:
    """At the top right: the chart may be many screens high."""
    return {
        "title": {"text": title, "side": "top"},
        "lenmode": "pixels",
        "len": min(220, ROW * rows),
        "y": 1,
        "yanchor": "top",
        "thickness": 12,
        "outlinewidth": 0,
    }
