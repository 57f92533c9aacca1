"""Analyses made up for tests of the page, of any size."""

from dataclasses import replace

import numpy as np

from lbcompiler.formats import FORMATS
from lbcompiler.report.analysis import (
    Analysis,
    Budget,
    Chosen,
    GroupFigures,
    LayerFigures,
    OptionFigures,
    PlanFigures,
    TensorFigures,
)
from lbcompiler.report.outliers import CHANNELS, MASSIVE_FIRST_TOKEN, WEIGHTS, Outliers

CANDIDATES = ("nvfp4", "mxfp6", "mxint8")


def analysis(count: int = 6, name: str = "layers.{}.up", kl: bool = True) -> Analysis:
    """`count` layers, each a group of its own; every third has outliers."""
    draw = np.random.default_rng(0)
    layers = tuple(_layer(name.format(i), i, draw) for i in range(count))
    groups = tuple(
        GroupFigures((layer.name,), 4096, tuple(_option(f, i, kl) for f in CANDIDATES))
        for i, layer in enumerate(layers)
    )
    uniform = tuple(_plan(layers, [f] * count, f, kl) for f in CANDIDATES)
    mixed = _plan(layers, [CANDIDATES[i % 3] for i in range(count)], "", kl)
    return Analysis(
        model="model.onnx",
        sha256="ab" * 32,
        version="0.1.0",
        calibration="calibration.npz",
        budget=Budget("effective_bits", 6.5),
        formats=CANDIDATES,
        ranked_by="nvfp4",
        sensitivity="model",
        layers=layers,
        groups=groups,
        uniform=uniform,
        front=(uniform[0], mixed, uniform[2]),
        chosen=mixed,
    )


def without_budget(found: Analysis) -> Analysis:
    """The same, nothing chosen."""
    layers = tuple(replace(layer, chosen=None) for layer in found.layers)
    return replace(found, budget=None, chosen=None, layers=layers)


def _layer(name: str, index: int, draw: np.random.Generator) -> LayerFigures:
    chosen = Chosen(
        CANDIDATES[index % 3],
        CANDIDATES[index % 3],
        "gptq",
        "sweep",
        "rceil",
        32,
        0,
        "",
        "it helps",
    )
    kinds = (MASSIVE_FIRST_TOKEN, CHANNELS, WEIGHTS)
    outliers = () if index % 3 else (Outliers(kinds[index % 9 // 3], 1234.5, 9, tuple(range(8))),)
    return LayerFigures(
        name, "MatMul", (64, 64), name, _tensor(draw), _tensor(draw), outliers, chosen
    )


def _tensor(draw: np.random.Generator) -> TensorFigures:
    plain = {f: 6.0 * fmt.element.bits + float(draw.normal()) for f, fmt in FORMATS.items()}
    rotated = {f: None if f == "mxfp4" else v + float(draw.normal()) for f, v in plain.items()}
    return TensorFigures(2.1, 2.4, 3.0 + float(draw.exponential()), plain, rotated)


def _option(fmt: str, index: int, kl: bool) -> OptionFigures:
    bits = FORMATS[fmt].bits_per_element
    cost = 4.0**-bits / (index + 1)
    return OptionFigures(
        fmt, fmt, "gptq", "sweep", 32, 0, False, bits, cost, 2 * cost, cost if kl else None, cost
    )


def _plan(layers: tuple[LayerFigures, ...], formats: list[str], name: str, kl: bool) -> PlanFigures:
    bits = float(np.mean([FORMATS[f].bits_per_element for f in formats]))
    by_layer = {layer.name: f for layer, f in zip(layers, formats, strict=True)}
    return PlanFigures(name, bits, 4.0**-bits if kl else None, 6 * bits, by_layer)
