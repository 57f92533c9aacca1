"""Analysis -> plotly figures of the whole model: what bits buy, and how values are spread."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lbcompiler.config import FLOAT
from lbcompiler.formats import FORMATS
from lbcompiler.formats.theory import crossover
from lbcompiler.report.analysis import Analysis, PlanFigures, tensor_of
from lbcompiler.report.look import COLORS, FLOOR, Chart, log_axis, plain

# MXINT8 and MXFP8 meet at 7.55, which no block of 32 reaches: integers are better everywhere.
RIVALS = (("nvint4", "nvfp4"), ("mxint4", "mxfp4"), ("mxint6", "mxfp6"))
POSSIBLE = 0.97  # of sqrt(block), the greatest crest factor there is: where theory's formulas end


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
        yaxis={"title": loss, **(log_axis([p.kl or 0.0 for p in measured]) if with_kl else {})},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return plain(figure)


def _any_format(plan: PlanFigures) -> str:
    return next(iter(plan.plan.values()))


def _formats_of(plan: PlanFigures) -> str:
    """`nvfp4 12, mxint8 4`."""
    counts = {name: list(plan.plan.values()).count(name) for name in COLORS}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


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
            crest = [getattr(tensor_of(layer, which), f"crest_{block}") for layer in layers]
            trace = _by_index(f"{said}, blocks of {block}", crest, names, color, symbol)
            figure.add_trace(trace.update(opacity=opacity), row=1, col=1)
        kurtosis = [tensor_of(layer, which).kurtosis for layer in layers]
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
            **log_axis([t.kurtosis for layer in layers for t in (layer.weight, layer.activation)]),
        },
    )
    return plain(figure)


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
