"""Model and calibration data -> Analysis: what deciding measures, and what its tensors are like.

The steps are those of `lbc compile` (docs/decisions.md) and share its state folder: what one has
measured the other finds there. Behind them come the tensors' own figures, a group at a time, kept
as `tensors-*`."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lbcompiler.calibration.state import State
from lbcompiler.compiler import (
    DEFAULT_WORK,
    check_fits,
    measured,
    merged,
    said_data,
    with_formats,
)
from lbcompiler.config import AnalysisConfig, CompileConfig
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.measured import Measured
from lbcompiler.decisions.plan import Option, Plan
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.frontend import hash_of, import_model
from lbcompiler.ir.dump import no_dump
from lbcompiler.ir.model import Layer
from lbcompiler.pipeline import Progress, silent
from lbcompiler.report.analysis import (
    Analysis,
    Budget,
    Chosen,
    GroupFigures,
    LayerFigures,
    OptionFigures,
    PlanFigures,
    TensorFigures,
    named,
)
from lbcompiler.report.outliers import Outliers, input_outliers, weight_outliers
from lbcompiler.report.page import plotly_script, write_page
from lbcompiler.report.tensors import figures
from lbcompiler.targets import targets_named

SECONDS_BETWEEN = 20.0  # of keeping what was found
PAGES = (".html", ".htm")

Tensors = dict[str, Any]  # of a group, as JSON: "input" and "weights", figures and outliers each


def analyze(
    model: Any,
    calibration_data: Any = None,
    *,
    output: str | Path | None = None,
    config: CompileConfig | str | Path | None = None,
    work: Work = DEFAULT_WORK,
    progress: Progress = silent,
    **settings: Any,
) -> Analysis:
    """Measure what every layer of a model can bear, and write the page `output` where it is given.

    `model`, `calibration_data`, `config` and `work` are those of `compile`, `settings` its other
    options by name (formats, effective_bits, hadamard, exclude, ...). Without a budget every
    candidate format is measured and none chosen; of one format what compiling would decide is
    shown.

    Raises ModelError, ConfigError, InputError or ArtifactError; a page is written whole or not.
    """
    script = None if output is None else _script_for(Path(output))
    given = {"calibration_data": said_data(calibration_data), **settings}
    asked = merged(config, {k: v for k, v in given.items() if v is not None}, AnalysisConfig)
    with _lasting(work) as (state, kept):
        targets = targets_named(asked.target)
        check_fits(asked, targets[0])
        progress("import", 0, 1)
        imported = import_model(model, asked.input_shapes)
        planned = with_formats(imported, asked, targets, no_dump)
        progress("import", 1, 1)
        found = measured(model, imported, planned, asked, calibration_data, kept, progress)
        assert found is not None  # an AnalysisConfig always measures
        tensors = _tensors(found[1], asked, state, progress)
        analysis = _analysis(model, imported.source, planned.layers, asked, *found, tensors)
    if output is not None and script is not None:
        write_page(analysis, Path(output), script)
    return analysis


def _script_for(output: Path) -> str:
    """plotly.js, asked for before hours of measuring."""
    if output.suffix.lower() not in PAGES:
        raise ConfigError(f"the report is an HTML page: name it {output.stem}.html, not {output}")
    return plotly_script()


@contextmanager
def _lasting(work: Work) -> Iterator[tuple[Path, Work]]:
    """A state folder that lasts as long as the analysis, at least."""
    if work.state is not None:
        yield work.state, work
        return
    with TemporaryDirectory(prefix="lbc-state-") as folder:
        state = Path(folder) / "state"
        yield state, replace(work, state=state)


def _tensors(
    known: Measured, config: CompileConfig, folder: Path, progress: Progress
) -> dict[str, Tensors]:
    """By group, from the state folder where they are there."""
    size = config.hadamard if isinstance(config.hadamard, int) else None
    state, name = State(folder), _record_name(known, size, config.hadamard_seed)
    found: dict[str, Tensors] = state.load_record(name) or {}
    last = time.monotonic()
    try:
        for group, layers in known.layers.items():
            progress("tensors", len(found), len(known.layers))
            if group in found:
                continue
            statistics = known.statistics[group]
            held: Tensors = {
                "figures": asdict(figures(statistics.sample, size, config.hadamard_seed, True)),
                "outliers": [asdict(o) for o in input_outliers(statistics)],
                "weights": {},
            }
            for layer in layers:
                weight = known.weight(layer)
                held["weights"][layer] = {
                    "figures": asdict(figures(weight, size, config.hadamard_seed, False)),
                    "outliers": [asdict(o) for o in weight_outliers(weight)],
                }
            found[group] = held
            if time.monotonic() - last > SECONDS_BETWEEN:
                state.save_record(name, found)
                last = time.monotonic()
    finally:
        state.save_record(name, found)
    progress("tensors", len(known.layers), len(known.layers))
    return found


def _record_name(known: Measured, size: int | None, seed: int | None) -> str:
    """Of these samples and weights, both of which a smoothing changes."""
    digest = hashlib.sha256(json.dumps([size, seed, list(known.layers.items())]).encode())
    for statistics in known.statistics.values():
        digest.update(np.ascontiguousarray(statistics.absmax).data)
        digest.update(statistics.counts.data)
    return f"tensors-{digest.hexdigest()[:12]}"


def _analysis(
    source: Any,
    name: str,
    layers: Mapping[str, Layer],
    config: CompileConfig,
    decided: Decided,
    known: Measured,
    tensors: Mapping[str, Tensors],
) -> Analysis:
    groups = [_group(known, group) for group in known.layers]
    formats = tuple(option.format for option in groups[0].options)
    narrowest = min(range(len(formats)), key=lambda i: groups[0].options[i].bits)
    groups.sort(key=lambda group: -group.options[narrowest].cost)
    of_layer = {layer: group for group, part in known.layers.items() for layer in part}
    return Analysis(
        model=name,
        sha256=hash_of(source) or "",
        version=version("lbcompiler"),
        calibration=config.calibration_data or config.calibration or "",
        budget=None if config.budget is None else Budget(*config.budget),
        formats=config.candidates,
        ranked_by=formats[narrowest],
        sensitivity=config.sensitivity,
        layers=tuple(
            _layer(layer, of_layer[key], decided, known, tensors[of_layer[key]])
            for key, layer in layers.items()
            if key in of_layer
        ),
        groups=tuple(groups),
        uniform=tuple(_plan(known, plan) for plan in known.uniform),
        front=tuple(_plan(known, plan) for plan in known.front),
        chosen=None if known.plan is None else _plan(known, known.plan),
        **decided.about,
    )


def _group(known: Measured, group: str) -> GroupFigures:
    rows = zip(
        known.solutions[group],
        known.options[group],  # float may stand behind them
        known.sensitivities[group],
        strict=False,
    )
    elements = sum(known.weight(layer).size for layer in known.layers[group])
    options: list[OptionFigures] = []
    for solution, option, divergence in rows:
        is_split = any(other.format == solution.choice.weight_format for other in options)
        options.append(_option(solution, option.bits, divergence, is_split))
    return GroupFigures(known.layers[group], elements, tuple(options))


def _option(
    solution: Solution, bits: float, divergence: Divergence, is_split: bool
) -> OptionFigures:
    choice = solution.choice
    return OptionFigures(
        choice.weight_format,
        choice.act_format,
        choice.quantizer,
        choice.rule,
        choice.hadamard,
        solution.taken,
        is_split,
        bits,
        solution.error,
        solution.plain_error,
        divergence.kl,
        divergence.noise,
    )


def _plan(known: Measured, plan: Plan) -> PlanFigures:
    options = {n: option for group, option in plan.chosen.items() for n in known.layers[group]}
    by_layer = {layer: option.format for layer, option in options.items()}
    split = tuple(layer for layer, option in options.items() if option.is_split)
    formats, divergence = set(by_layer.values()), plan.divergence
    name = named(formats.pop(), bool(split)) if len(formats) == 1 else ""
    return PlanFigures(
        name, plan.effective_bits, divergence.kl, divergence.qsnr_db, by_layer, split
    )


def _layer(
    layer: Layer, group: str, decided: Decided, known: Measured, tensors: Tensors
) -> LayerFigures:
    weight = tensors["weights"][layer.name]
    found = [*tensors["outliers"], *weight["outliers"]]
    return LayerFigures(
        layer.name,
        layer.op,
        layer.shape,
        group,
        TensorFigures(**weight["figures"]),
        TensorFigures(**tensors["figures"]),
        tuple(Outliers(**{**o, "channels": tuple(o["channels"])}) for o in found),
        _chosen(layer.name, decided, None if known.plan is None else known.plan.chosen[group]),
    )


def _chosen(layer: str, decided: Decided, option: Option | None) -> Chosen | None:
    if option is None:
        return None
    decision = decided.decisions[layer]
    smoothing = decided.smoothings.get(layer)
    rotation = decision.rotation or decided.folded.get(layer)
    return Chosen(
        decision.weight_format,
        decision.act_format,
        decision.quantizer,
        decision.rule,
        decision.act_rule,
        0 if rotation is None else rotation.size,
        0 if option.solution is None else option.solution.taken,
        "" if smoothing is None else smoothing.method,
        decision.reason,
    )
