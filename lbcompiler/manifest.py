"""What an artifact says of itself: the records of its manifest, read off what was compiled."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcompiler.artifact import (
    SCHEMA_VERSION,
    DimRecord,
    KernelRecord,
    LayerProgram,
    LayerRecord,
    Manifest,
    ParetoRecord,
    PortRecord,
    ProgramRecord,
    SourceRecord,
    StateRecord,
    TargetRecord,
    Totals,
    TuningRecord,
    file_records,
)
from lbcompiler.config import FLOAT, CompileConfig
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.plan import bits_of
from lbcompiler.frontend import hash_of, kind_of
from lbcompiler.ir.model import Layer, Model
from lbcompiler.target import KernelUse, Target

if TYPE_CHECKING:
    from lbcompiler.tuning.results import Found


def manifest_of(
    source: Any,
    programs: Sequence[Model],
    decided: Decided | None,
    config: CompileConfig,
    targets: Sequence[Target],
    tuned: "Found | None",
    kernels: Sequence[KernelUse],
    folder: Path,
) -> Manifest:
    """Of the files in `folder`, all written but the manifest; one of `programs` a target."""
    model, target = programs[0], targets[0]
    packages = ("lbcompiler", "apache-tvm", "apache-tvm-ffi")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created_by={name: version(name) for name in packages},
        source=SourceRecord(path=model.source, sha256=hash_of(source), kind=kind_of(source)),
        target=TargetRecord(name=target.name, isa=target.isa),
        config=config.model_dump(mode="json"),
        inputs=[PortRecord(name=p.name, dtype=p.dtype, shape=list(p.shape)) for p in model.inputs],
        outputs=[
            PortRecord(name=p.name, dtype=p.dtype, shape=list(p.shape)) for p in model.outputs
        ],
        dims=[DimRecord(**asdict(dim)) for dim in model.dims],
        states=[StateRecord(**asdict(state)) for state in model.states],
        layers=[_layer_record(layer) for layer in model.layers.values()],
        tuning=None if tuned is None else _tuning_record(tuned, model),
        effective_bits=_effective_bits(model),
        **({} if decided is None else decided.about),
        pareto=[] if decided is None else [ParetoRecord(**asdict(p)) for p in decided.pareto],
        totals=_totals(model),
        parameters=list(model.parameters),
        programs=[_program_record(m, t) for m, t in zip(programs[1:], targets[1:], strict=True)],
        kernels=[KernelRecord(**asdict(kernel)) for kernel in kernels],
        files=file_records(folder),
    )


def _tuning_record(tuned: "Found", model: Model) -> TuningRecord:
    names = {source.name for source in tuned.sources}
    used = [set(layer.config_source.split(" + ")) for layer in model.layers.values()]
    return TuningRecord(
        database=tuned.name,
        results=tuned.count,
        other_versions=tuned.other_versions,
        layers=sum(bool(names & sources) for sources in used),
    )


def _program_record(model: Model, target: Target) -> ProgramRecord:
    own = [_layer_record(layer).model_dump() for layer in model.layers.values()]
    layers = [{key: held[key] for key in LayerProgram.model_fields} for held in own]
    return ProgramRecord(
        isa=target.isa,
        layers=[LayerProgram(**held) for held in layers],
        parameters=list(model.parameters),
    )


def _layer_record(layer: Layer) -> LayerRecord:
    return LayerRecord.model_validate(
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(layer).items()
            if key in LayerRecord.model_fields
        }
    )


def _effective_bits(model: Model) -> float | None:
    """Of a weight's element, over all layers that were to be quantized; a float has 32. Outliers
    that a second product holds again are bits, and no elements.
    """
    asked = [layer for layer in model.layers.values() if layer.requested != FLOAT]
    elements = sum(prod(layer.shape) - _again(layer) for layer in asked)
    if not elements:
        return None
    return sum(bits_of(layer.realized) * prod(layer.shape) for layer in asked) / elements


def _again(layer: Layer) -> int:
    """Elements of the layer's weight that the layer of its outliers holds as well."""
    return layer.shape[0] * layer.outliers


def _totals(model: Model) -> Totals:
    quantized = [layer for layer in model.layers.values() if layer.weight_format != "none"]
    names = {name for layer in quantized for name in layer.weights}
    elements = {
        layer.weights[0]: prod(layer.shape) - _again(layer) for layer in quantized if layer.weights
    }
    return Totals(
        layers=len(model.layers),
        quantized=len(quantized),
        weight_bytes=sum(model.weights[name].nbytes for name in names),
        float_bytes=4 * sum(elements.values()),
    )
