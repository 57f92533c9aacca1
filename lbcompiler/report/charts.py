"""Analysis -> plotly figures, each a dictionary {data, layout} for page.js; `names` beside them are
the customdata of every trace: one a row, said once.

Rows of a chart are layers from top to bottom and have one height, so that a model of hundreds
scrolls; the columns of heat maps are named by the page, above what scrolls (`Columns`). Names of
layers are escaped: plotly reads tags in its labels. Colours of text, lines and backgrounds are the
page's (page.css), which knows light from dark."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lbcompiler.config import FLOAT
from lbcompiler.formats import FORMATS
from lbcompiler.formats.theory import crossover
from lbcompiler.report.analysis import (
    Analysis,
    LayerFigures,
    PlanFigures,
    TensorFigures,
    members_of,
)

ROW = 18  # pixels of a layer
NAME_LENGTH = 44  # characters on the left of a chart; the middle of longer names is left out
NAME_PIXELS = 7  # of a character there
RIGHT = 84  # pixels, of the colour bar
NUMBERED = 2500  # cells of a heat map that have their number written in
COSTS = {
    "output": "relative error of its own output",
    "fisher": "loss of the model that gradients expect",
}
NARROW = 1.5  # decades of an axis
FLOOR = 1e-9  # of a cost on a logarithmic axis

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
# MXINT8 and MXFP8 meet at 7.55, which no block of 32 reaches: integers are better everywhere.
WARM_TO_COOL = [[0, "#ee8866"], [0.35, "#f8d48a"], [0.65, "#e3efb2"], [1, "#77c9b8"]]  # all light
RIVALS = (("nvint4", "nvfp4"), ("mxint4", "mxfp4"), ("mxint6", "mxfp6"))
POSSIBLE = 0.97  # of sqrt(block), the greatest crest factor there is: where theory's formulas end

Chart = dict[str, Any]


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
        tensors = [_tensor(layer, which) for layer in analysis.layers]
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
    figure.update_layout(
        coloraxis={"colorscale": WARM_TO_COOL, "colorbar": _color_bar(len(names), "dB")},
        coloraxis2={
            "colorscale": "RdBu",
            "cmid": 0,
            "colorbar": _color_bar(len(names), "dB gained"),
        },
    )
    chart = _of_layers(figure, names, columns)
    return chart | {"names": [escape(name) for name in names]}, columns


def _tensor(layer: LayerFigures, which: str) -> TensorFigures:
    return layer.weight if which == "weight" else layer.activation


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
    """`5.02 bits`, and `chosen` or the format where there is but one."""
    said = "chosen, " if plan is analysis.chosen else ""
    return f"{said}{plan.effective_bits:.2f} bits"


def front(analysis: Analysis) -> Chart:
    """Bits a weight against what the model loses."""
    shown = [plan for plan in analysis.front if plan.name != FLOAT]  # lossless, and far away
    uniform = [plan for plan in analysis.uniform if plan.name != FLOAT]
    measured = (*shown, *uniform)
    with_kl = all(plan.kl is not None for plan in measured)
    loss = "KL to the float model, nats a token" if with_kl else "QSNR of the worst output, dB"

    def points(plans: Iterable[PlanFigures], said: Mapping[str, Any]) -> go.Scatter:
        plans = list(plans)
        return go.Scatter(
            x=[p.effective_bits for p in plans],
            y=[max(p.kl or 0.0, FLOOR) if with_kl else p.qsnr_db for p in plans],
            customdata=[[_formats_of(p), "" if p.kl is None else f"{p.kl:.4g}"] for p in plans],
            hovertemplate="%{x:.3f} bits<br>KL %{customdata[1]}<br>%{customdata[0]}"
            if with_kl
            else "%{x:.3f} bits<br>%{y:.2f} dB<br>%{customdata[0]}",
            **said,
        )

    figure = go.Figure()
    figure.add_trace(
        points(
            shown,
            {
                "name": "measured front",
                "mode": "lines+markers",
                "line": {"color": "#3f6fd8", "width": 2, "shape": "linear"},
                "marker": {"size": 7},
            },
        )
    )
    figure.add_trace(
        points(
            uniform,
            {
                "name": "one format everywhere",
                "mode": "markers+text",
                "text": [plan.name for plan in uniform],
                "textposition": [("top right", "bottom right")[i % 2] for i in range(len(uniform))],
                "marker": {
                    "symbol": "square",
                    "size": 9,
                    "color": [COLORS[_any_format(plan)] for plan in uniform],
                },
            },
        )
    )
    if analysis.chosen is not None:
        figure.add_trace(
            points(
                [analysis.chosen],
                {
                    "name": "what the compiler would choose",
                    "mode": "markers",
                    "marker": {
                        "symbol": "circle-open",
                        "size": 18,
                        "color": "#d1495b",
                        "line": {"width": 3},
                    },
                },
            )
        )
    figure.update_layout(
        height=430,
        margin={"l": 74, "r": 24, "t": 12, "b": 52},
        xaxis={"title": "bits a weight, scales included"},
        yaxis={"title": loss, **(_log_axis([p.kl or 0.0 for p in measured]) if with_kl else {})},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return _plain(figure)


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
            **_log_axis([option.cost for group in groups for option in group.options]),
            "side": "top",
            "title": {"text": _cost_name(analysis), "standoff": 6},
        },
        "legend": {"orientation": "v", "x": 1.01, "y": 1, "tracegroupgap": 0},
    }
    chart["layout"]["margin"] |= {"t": 64, "r": 110}
    chart["layout"]["height"] += 64
    return chart


def _cost_name(analysis: Analysis) -> str:
    if analysis.sensitivity != "model":
        return COSTS[analysis.sensitivity]
    with_kl = all(option.kl is not None for g in analysis.groups for option in g.options)
    return "KL of the model, nats a token" if with_kl else "noise over signal of the worst output"


def shapes(analysis: Analysis) -> Chart:
    """Crest factor and kurtosis of every layer's weight and input, in the model's order."""
    layers = analysis.layers
    names = [escape(layer.name) for layer in layers]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    series = (
        ("input", "activation", "#d1495b", "circle"),
        ("weight", "weight", "#3f6fd8", "diamond"),
    )
    for said, which, color, symbol in series:
        for block, opacity in ((16, 1.0), (32, 0.55)):
            crest = [getattr(_tensor(layer, which), f"crest_{block}") for layer in layers]
            trace = _by_index(f"{said}, blocks of {block}", crest, names, color, symbol)
            figure.add_trace(trace.update(opacity=opacity), row=1, col=1)
        kurtosis = [_tensor(layer, which).kurtosis for layer in layers]
        trace = _by_index(f"{said}, kurtosis", kurtosis, names, color, symbol)
        figure.add_trace(trace.update(showlegend=False), row=2, col=1)
    for (integer, floating), dash in zip(RIVALS, ("dash", "dot", "dashdot"), strict=True):
        one, other = FORMATS[integer], FORMATS[floating]
        at = crossover(one, other, high=POSSIBLE * math.sqrt(one.block))
        figure.add_trace(
            go.Scatter(
                x=[1, len(layers)],
                y=[at, at],
                name=f"{integer} beats {floating} below {at:.2f}",
                mode="lines",
                line={"dash": dash, "width": 1.2, "color": COLORS[floating]},
                hoverinfo="skip",
            ),
            row=1,
            col=1,
        )
    figure.add_hline(3, row=2, col=1, line={"dash": "dot", "width": 1, "color": "#8a8f98"})
    figure.update_layout(
        height=560,
        margin={"l": 74, "r": 24, "t": 12, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis2={"title": "layer, in the model's order"},
        yaxis={"title": "crest factor of a block"},
        yaxis2={
            "title": "kurtosis of a row",
            **_log_axis([t.kurtosis for layer in layers for t in (layer.weight, layer.activation)]),
        },
    )
    return _plain(figure)


def _by_index(
    name: str, values: Sequence[float | None], names: Sequence[str], color: str, symbol: str
) -> go.Scatter:
    return go.Scatter(
        x=list(range(1, len(values) + 1)),
        y=[None if v is None else round(v, 4) for v in values],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 6},
        customdata=names,
        hovertemplate=f"%{{customdata}}<br>{name}: %{{y:.4g}}<extra></extra>",
    )


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
    return _plain(figure)


def _name_width(names: Sequence[str]) -> int:
    return NAME_PIXELS * max(len(shortened(name)) for name in names) + 12


def _log_axis(values: Iterable[float]) -> Chart:
    """Powers of ten are named, and 2 and 5 as well where there would be few of those."""
    held = [max(value, FLOOR) for value in values]
    decades = math.log10(max(held) / min(held))
    return {"type": "log", "dtick": 1 if decades > NARROW else "D2", "exponentformat": "power"}


def _plain(figure: go.Figure) -> Chart:
    figure.update_layout(template="none", hovermode="closest")
    held = figure.to_plotly_json()
    layout = held["layout"]
    layout.pop("template", None)
    return {"data": held["data"], "layout": layout}


def shortened(name: str) -> str:
    """Its two ends, where it is long: both tell layers apart."""
    if len(name) <= NAME_LENGTH:
        return name
    head = (NAME_LENGTH - 1) // 3
    return f"{name[:head]}…{name[head + 1 - NAME_LENGTH :]}"


def _any_format(plan: PlanFigures) -> str:
    return next(iter(plan.plan.values()))


def _formats_of(plan: PlanFigures) -> str:
    """`nvfp4 12, mxint8 4`."""
    counts = {name: list(plan.plan.values()).count(name) for name in COLORS}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


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
