"""Analysis -> one HTML page that needs nothing else: its style, script, data and plotly.js inside.

The page forbids itself every connection (Content-Security-Policy). Whatever comes from a model, its
layers' names above all, is escaped: in HTML by `escape`, in the data by `_script_json`."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lbcompiler.config import FLOAT
from lbcompiler.errors import ConfigError
from lbcompiler.files import appearing
from lbcompiler.report.analysis import Analysis, LayerFigures, PlanFigures, members_of
from lbcompiler.report.outliers import (
    CHANNEL,
    CHANNEL_SHARE,
    CHANNELS,
    MASSIVE,
    MASSIVE_ANYWHERE,
    MASSIVE_FIRST_TOKEN,
    WEIGHT,
    WEIGHTS,
)

if TYPE_CHECKING:
    from lbcompiler.report.rows import Columns

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
KINDS = {
    MASSIVE_FIRST_TOKEN: "massive first token",
    MASSIVE_ANYWHERE: "massive",
    CHANNELS: "channels",
    WEIGHTS: "weights",
}
EFFECTS = {
    "model": "does to the model's output",
    "output": "does to its own output",
    "fisher": "does to the model's output, as gradients expect",
}
OUTLIERS_TEXT = (
    f"Massive: an input over {MASSIVE:g} times the mean, in first tokens only or elsewhere too. "
    f"Channels: of an input, over {CHANNEL:g} times the usual channel in {CHANNEL_SHARE:.0%} of "
    "the rows or more. Weights: the maximum over the mean of a row or column is beyond "
    f"{WEIGHT:g} times what a Gaussian has."
)
BUDGETS = {
    "effective_bits": "at most {:g} bits a weight",
    "max_kl": "a KL of at most {:g} nats a token",
    "min_qsnr": "a QSNR of at least {:g} dB",
    "max_latency": "kernels at most {:g} times as slow as the fastest",
}

FRONT_TEXT = (
    "Every point is a plan, a format for each layer, measured on the whole model with data that "
    "nothing was learned from. On the line are those that no other beats. They are measured before "
    "the gate on the whole model, which only what is chosen passes."
)
PLANS_TEXT = (
    "Each column is a measured plan, each row a group of layers: those that read one input (q, k, "
    "v; gate, up) have one format."
)
QSNR_TEXT = (
    "QSNR of plain rounding in every format, in dB: 20 dB is an error of a tenth, 40 dB of a "
    "hundredth. Rotated: behind a block Hadamard, of the format's own block unless a size was "
    "asked for. Gain: what the rotation adds; below zero it hurts."
)
SHAPES_TEXT = (
    "The crest factor of a block, max / RMS, decides between integers and floats of the same size: "
    "below the dotted lines integers are better for Gaussian values (arXiv 2510.25602). The "
    "kurtosis is 3 for a Gaussian; far above, few values carry most of a row."
)


def plotly_script() -> str:
    """plotly.js, whole. Raises ConfigError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(
            "the report needs plotly, which is not installed: pip install 'lbcompiler[report]'; "
            "lbc analyze --json needs it only with -o"
        ) from None
    return str(get_plotlyjs())


def write_page(analysis: Analysis, path: Path, script: str) -> None:
    """`script` is plotly.js. The file appears whole or not at all."""
    text = page(analysis, script)
    with appearing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def page(analysis: Analysis, script: str) -> str:
    """The HTML."""
    from lbcompiler.report import charts, rows  # need plotly, which an analysis as JSON does not

    qsnr, qsnr_columns = rows.qsnr(analysis)
    plans, plan_columns = rows.plans(analysis)
    drawn = {
        "front": charts.front(analysis),
        "plans": plans,
        "sensitivity": rows.sensitivity(analysis),
        "qsnr": qsnr,
        "shapes": charts.shapes(analysis),
    }
    title = escape(Path(analysis.model).name or "model in memory")
    resources = files("lbcompiler.report")
    body = "".join(
        (
            _header(analysis, title),
            _section("front", "What bits buy", _front_text(analysis), _figure("front")),
            _section(
                "plans",
                "The plans, layer by layer",
                PLANS_TEXT,
                _scrolled(_columns(plan_columns) + _figure("plans")),
            ),
            _section(
                "sensitivity",
                "Which layers the model is sensitive to",
                _sensitivity_text(analysis),
                _scrolled(_figure("sensitivity")),
            ),
            _section(
                "qsnr",
                "What rounding leaves of weights and inputs",
                QSNR_TEXT,
                _switches() + _scrolled(_columns(qsnr_columns) + _figure("qsnr")),
            ),
            _section(
                "shapes",
                "How values are spread",
                SHAPES_TEXT,
                _figure("shapes"),
            ),
            _section("outliers", "Outliers", _outliers_text(analysis), _outlier_table(analysis)),
            _section(
                "layers",
                "Every layer",
                "" if analysis.chosen else "No budget was given, so nothing is chosen.",
                _filter() + _scrolled(_layer_table(analysis)),
            ),
            _footer(analysis),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}: lbc analyze</title>\n"
        f"<style>\n{(resources / 'page.css').read_text()}</style>\n"
        f"<script>{script}</script>\n</head>\n<body>\n<main>\n{body}</main>\n"
        f'<script type="application/json" id="charts">{_script_json(drawn)}</script>\n'
        f"<script>\n{(resources / 'page.js').read_text()}</script>\n</body>\n</html>\n"
    )


def _script_json(value: object) -> str:
    """JSON that no tag or comment within can end."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _header(analysis: Analysis, title: str) -> str:
    budget = analysis.budget
    asked = "no budget" if budget is None else BUDGETS[budget.name].format(budget.limit)
    facts = [
        ("layers", str(len(analysis.layers))),
        ("groups that decide together", str(len(analysis.groups))),
        ("candidates", ", ".join(analysis.formats)),
        ("asked for", asked),
        ("calibrated on", Path(analysis.calibration).name or "an iterator"),
    ]
    if analysis.chosen is not None:
        facts.append(("chosen", _plan_text(analysis.chosen)))
    facts += analysis.judged.items()
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f"<header><h1>{title}</h1><dl>{items}</dl></header>\n"


def _plan_text(plan: PlanFigures) -> str:
    kl = "" if plan.kl is None else f", KL {plan.kl:.3g} nats a token"
    return f"{plan.effective_bits:.2f} bits a weight{kl}, QSNR {plan.qsnr_db:.1f} dB"


def _front_text(analysis: Analysis) -> str:
    text = FRONT_TEXT
    if analysis.chosen is None:
        return f"{text} No budget was given: pick a point and ask for it (--effective-bits)."
    assert analysis.budget is not None or len(analysis.formats) == 1
    if analysis.budget is None:
        return f"{text} One format was offered, so it is the plan: {_plan_text(analysis.chosen)}."
    asked = BUDGETS[analysis.budget.name].format(analysis.budget.limit)
    rival = _best_uniform(analysis)
    against = ""
    if rival is not None and rival.name != analysis.chosen.name:
        against = f" The best single format within these bits, {rival.name}: {_plan_text(rival)}."
    return f"{text} For {asked} the compiler would choose {_plan_text(analysis.chosen)}.{against}"


def _best_uniform(analysis: Analysis) -> PlanFigures | None:
    chosen = analysis.chosen
    assert chosen is not None
    within = [p for p in analysis.uniform if p.effective_bits <= chosen.effective_bits + 1e-9]
    return max(within, key=lambda plan: plan.qsnr_db if plan.kl is None else -plan.kl, default=None)


def _sensitivity_text(analysis: Analysis) -> str:
    return (
        f"What quantizing one group alone, all others in float, {EFFECTS[analysis.sensitivity]}. "
        f"Sorted by what {analysis.ranked_by} costs there ({analysis.cost_name}); click a format "
        "in the legend to hide it."
    )


def _outliers_text(analysis: Analysis) -> str:
    if any(layer.outliers for layer in analysis.layers):
        return f"{OUTLIERS_TEXT} Channels are numbered from 0, the strongest first."
    return f"{OUTLIERS_TEXT} There are none."


def _outlier_table(analysis: Analysis) -> str:
    """Those of an input once, under the first of the layers that read it."""
    members = {group.name: members_of(group.layers) for group in analysis.groups}
    found = [
        (
            KINDS[o.kind],
            layer.name if kind == WEIGHTS else members[layer.group],
            f"{o.ratio:,.0f}",
            str(o.count),
            _channels(o.channels, o.count),
        )
        for kind in KINDS
        for layer in analysis.layers
        for o in layer.outliers
        if o.kind == kind and (kind == WEIGHTS or layer.name == layer.group)
    ]
    if not found:
        return ""
    columns = ("kind", "layer", "times", "channels", "which")
    return _scrolled(_table(columns, found, numbers=(2, 3), words=(1, 4)))


def _channels(channels: Sequence[int], count: int) -> str:
    return ", ".join(map(str, channels)) + (", …" if count > len(channels) else "")


def _layer_table(analysis: Analysis) -> str:
    ranks = {name: i for i, g in enumerate(analysis.groups, 1) for name in g.layers}
    costs = {name: _costs(analysis, i) for i, g in enumerate(analysis.groups) for name in g.layers}
    with_plan = any(layer.chosen for layer in analysis.layers)
    decided = ("format", "inputs", "quantizer", "rotation", "why") if with_plan else ()
    rows = [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            str(ranks[layer.name]),
            costs[layer.name],
            *(_decided(layer) if with_plan else ()),
        )
        for layer in analysis.layers
    ]
    columns = ("layer", "shape", "rank", f"cost in {analysis.ranked_by}", *decided)
    return _table(columns, rows, numbers=(2, 3), words=(0, len(columns) - 1), name="layer-table")


def _costs(analysis: Analysis, group: int) -> str:
    options = analysis.groups[group].options
    return f"{next(o for o in options if o.format == analysis.ranked_by).cost:.3g}"


def _decided(layer: LayerFigures) -> tuple[str, ...]:
    chosen = layer.chosen
    if chosen is None:
        return ("", "", "", "", "")
    if chosen.format == FLOAT:
        return (FLOAT, "", "", "", chosen.reason)
    smoothed = f", {chosen.smoothing}" if chosen.smoothing else ""
    smoothed += f", {chosen.outliers} split off" if chosen.outliers else ""
    return (
        chosen.format,
        "float" if chosen.act_format == "none" else chosen.act_format,
        f"{chosen.quantizer}, {chosen.scale_rule}",
        f"{chosen.hadamard or 'none'}{smoothed}",
        chosen.reason,
    )


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int],
    words: Sequence[int],
    name: str = "",
) -> str:
    """Every cell escaped; columns of numbers stand right, those of words may break."""
    kinds = ["number" if i in numbers else "words" * (i in words) for i in range(len(columns))]
    style = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(f"<th{s}>{escape(c)}</th>" for s, c in zip(style, columns, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{s}>{escape(c)}</td>" for s, c in zip(style, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    said = f' id="{name}"' if name else ""
    return f"<table{said}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _section(name: str, title: str, text: str, content: str) -> str:
    said = f"<p>{escape(text)}</p>" if text else ""
    return f'<section id="{name}-section"><h2>{title}</h2>{said}{content}</section>\n'


def _figure(name: str) -> str:
    return f'<div class="chart" id="{name}"></div>'


def _scrolled(content: str) -> str:
    return f'<div class="scrolled" tabindex="0">{content}</div>'


def _columns(columns: "Columns") -> str:
    """Names of a heat map's columns, which stay above it; long ones break at underscores."""
    cells = "".join(f"<span>{escape(n).replace('_', '_<wbr>')}</span>" for n in columns.names)
    padding = f"padding:0 {columns.right}px 0 {columns.left}px"
    return f'<div class="columns" style="{padding}">{cells}</div>'


def _switches() -> str:
    """Which of the six heat maps is shown; page.js reads the values."""
    groups = (
        ("tensor", (("weight", "Weights"), ("activation", "Inputs"))),
        ("view", (("plain", "Plain"), ("hadamard", "Rotated"), ("gain", "Gain"))),
    )
    boxes = "".join(
        '<fieldset role="radiogroup">'
        + "".join(
            f'<label><input type="radio" name="{name}" value="{value}"'
            f"{' checked' if i == 0 else ''}><span>{said}</span></label>"
            for i, (value, said) in enumerate(choices)
        )
        + "</fieldset>"
        for name, choices in groups
    )
    return f'<div class="switches">{boxes}</div>'


def _filter() -> str:
    return (
        '<input type="search" id="filter" placeholder="Filter layers" '
        'aria-label="Filter layers" autocomplete="off" spellcheck="false">'
    )


def _footer(analysis: Analysis) -> str:
    sha = f", sha256 {analysis.sha256[:16]}" if analysis.sha256 else ""
    return (
        f"<footer>lbcompiler {escape(analysis.version)}; {escape(analysis.model)}{sha}</footer>\n"
    )
