"""The whole flow, top to bottom: model file -> Relax -> passes -> target code -> artifact.

The file is not named after its function: a submodule `lbcompiler.compile` would take the function's
place in the package the moment anyone imports it."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcompiler.artifact import (
    CODE,
    MANIFEST,
    REPORT,
    WEIGHTS,
    Artifact,
    kernels_file,
    new_folder,
)
from lbcompiler.config import WEIGHT_ONLY, CompileConfig, make_config
from lbcompiler.decisions.decide import Gradients, decide
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.latency import KernelSeconds, kernel_seconds
from lbcompiler.decisions.measured import Measured
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.files import unfinished
from lbcompiler.frontend import import_model, kind_of
from lbcompiler.ir.digest import digest_of
from lbcompiler.ir.dump import Dump, dump_into, no_dump
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.rotation import Rotation
from lbcompiler.manifest import manifest_of
from lbcompiler.passes import (
    OBSERVE,
    PREPARE,
    ApplyDecisions,
    FoldRotations,
    LiftWeights,
    Rotate,
    RotateResidual,
    SelectFormats,
    Smooth,
    SplitOutliers,
    quantize,
)
from lbcompiler.pipeline import Pass, Progress, StageClock, run, silent
from lbcompiler.quantizers import QUANTIZERS, round_to_nearest
from lbcompiler.target import Files, KernelUse, Target
from lbcompiler.targets import targets_named
from lbcompiler.weights_file import write_weights

if TYPE_CHECKING:
    from lbcompiler.tuning.results import Found


DEFAULT_WORK = Work()
AUTO = "auto"  # what is requested of a layer whose format is chosen under a budget


def compile(
    model: Any,
    target: str | None = None,
    format: str | None = None,
    act_format: str | None = None,
    *,
    scale_rule: str | None = None,
    act_scale_rule: str | None = None,
    include: Iterable[str] | str | None = None,
    exclude: Iterable[str] | str | None = None,
    inputs: Mapping[str, str] | None = None,
    on_unsupported: str | None = None,
    tuning_db: str | Path | None = None,
    quantizer: str | None = None,
    formats: Iterable[str] | None = None,
    effective_bits: float | None = None,
    max_kl: float | None = None,
    min_qsnr: float | None = None,
    max_latency: float | None = None,
    sensitivity: str | None = None,
    hadamard: str | int | None = None,
    hadamard_seed: int | None = None,
    rotate_residual: str | None = None,
    smooth: str | None = None,
    outliers: str | int | None = None,
    calibration: str | None = None,
    calibration_data: Any = None,
    calibration_samples: int | None = None,
    work: Work = DEFAULT_WORK,
    config: CompileConfig | str | Path | None = None,
    output: str | Path | None = None,
    force: bool = False,
    keep_source: bool = False,
    dump_ir: str | Path | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Compile a model to block-scaled low-bit code.

    `model` is the path of an .onnx or .pt2 file, an `onnx.ModelProto` or a
    `torch.export.ExportedProgram`. What is not given comes from `config` (a CompileConfig or the
    path of its YAML), then from its defaults: target the host's CPU, format mxint8 for weights and
    activations; `act_format="none"` is weight-only. `inputs` maps a name to a shape such as
    "1x(1..512)". `tuning_db` is what `lbc tune` kept, or an export of it; without, and for what it
    lacks, kernels have the configs that are shipped. The artifact lies at `output`, or in a
    temporary folder until `save`.

    Calibrated, a layer's quantizer, rotation and, under one of the budgets `effective_bits`
    (of a weight), `max_kl` (nats a token), `min_qsnr` (dB) or `max_latency` (times the fastest
    kernels'), its format among `formats` are decided by measuring (docs/decisions.md).
    `calibration_data` is a path, "module:function" or an iterable of feeds; `work` says where the
    measurements are kept and how many processes make them. `keep_source` leaves the CUDA text of
    every kernel in the artifact.

    Raises ModelError, ConfigError or ArtifactError; nothing is half-written.
    """
    given = {
        "target": target,
        "format": format,
        "act_format": act_format,
        "scale_rule": scale_rule,
        "act_scale_rule": act_scale_rule,
        "include": include,
        "exclude": exclude,
        "inputs": None if inputs is None else dict(inputs),
        "on_unsupported": on_unsupported,
        "tuning_db": None if tuning_db is None else str(tuning_db),
        "quantizer": quantizer,
        "formats": None if formats is None else tuple(formats),
        "effective_bits": effective_bits,
        "max_kl": max_kl,
        "min_qsnr": min_qsnr,
        "max_latency": max_latency,
        "sensitivity": sensitivity,
        "hadamard": hadamard,
        "hadamard_seed": hadamard_seed,
        "rotate_residual": rotate_residual,
        "smooth": smooth,
        "outliers": outliers,
        "calibration": calibration,
        "calibration_data": said_data(calibration_data),
        "calibration_samples": calibration_samples,
    }
    settings = merged(config, {key: value for key, value in given.items() if value is not None})
    dump = dump_into(dump_ir)
    tuned = _tuning_results(settings)
    with _destination(output, force) as folder:
        clock = StageClock(progress)
        backends = targets_named(settings.target, () if tuned is None else tuned.sources)
        for backend in backends:
            backend.check()
        check_fits(settings, backends[0], keep_source)
        imported = clock("import", lambda: import_model(model, settings.input_shapes))
        planned = clock("plan", lambda: with_formats(imported, settings, backends, dump))
        found = measured(model, imported, planned, settings, calibration_data, work, progress)
        decided = None if found is None else found[0]
        quantized = clock("quantize", lambda: _quantize(planned, decided, settings, dump))
        programs = [run((*b.passes, LiftWeights()), quantized, dump) for b in backends]
        clock(  # before the code, which takes longer: a weight that is refused is refused early
            "weights",
            lambda: write_weights(
                folder / WEIGHTS,
                {name: m.weights[name] for m in programs for name in m.parameters},
                lambda done, total: progress("weights", done, total),
            ),
        )
        kernels = clock("code", lambda: _build(backends, programs, folder, keep_source, dump))
        (folder / REPORT).write_text(json.dumps({"seconds": clock.seconds}, indent=2) + "\n")
        manifest = manifest_of(model, programs, decided, settings, backends, tuned, kernels, folder)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Artifact(folder if output is None else Path(output), manifest, temporary=output is None)


def plan(
    model: Any,
    config: CompileConfig,
    progress: Progress = silent,
    dump_ir: str | Path | None = None,
) -> list[Layer]:
    """What `compile` would make of every layer, without making it: the table of --dry-run."""
    dump = dump_into(dump_ir)
    tuned = _tuning_results(config)
    backends = targets_named(config.target, () if tuned is None else tuned.sources)
    check_fits(config, backends[0])
    progress("import", 0, 1)
    imported = import_model(model, config.input_shapes)
    quantized = _quantize(with_formats(imported, config, backends, dump), None, config, dump)
    planned = run((*backends[0].passes, LiftWeights()), quantized, dump)
    progress("import", 1, 1)
    return list(planned.layers.values())


def check_fits(config: CompileConfig, target: Target, keep_source: bool = False) -> None:
    """Raises ConfigError for what is asked of another target than it is for."""
    if keep_source and target.name != "cuda":
        raise ConfigError(f"--keep-source is for target cuda: {target.name} has no such text")
    if config.max_latency is not None and target.name != "cpu":
        raise ConfigError(
            f"--max-latency times the kernels of target cpu, which says nothing of {target.name}: "
            "choose another budget, such as --effective-bits"
        )
    size, largest = config.hadamard, target.largest_rotation
    if isinstance(size, int) and largest is not None and size > largest:
        raise ConfigError(
            f"--hadamard {size}: target {target.name} rotates blocks of up to {largest} numbers "
            f"when the code runs; choose a size up to {largest}"
        )


def planned(model: Any, config: CompileConfig) -> Model:
    """The model's linears with a format each, before anything is quantized."""
    imported = import_model(model, config.input_shapes)
    return with_formats(imported, config, targets_named(config.target), no_dump)


def merged(
    config: CompileConfig | str | Path | None,
    given: dict[str, Any],
    kind: type[CompileConfig] = CompileConfig,
) -> CompileConfig:
    """`config` with `given` on top, validated as `kind`. Raises ConfigError."""
    if isinstance(config, CompileConfig):
        return make_config({**config.model_dump(exclude_unset=True), **given}, kind=kind)
    return make_config(given, config, kind)


def _tuning_results(config: CompileConfig) -> "Found | None":
    if config.tuning_db is None:
        return None
    from lbcompiler.tuning.results import read_results  # needs packages that only tuning needs

    return read_results(config.tuning_db, config.target)


def with_formats(
    model: Model, config: CompileConfig, targets: Sequence[Target], dump: Dump
) -> Model:
    """An imported model's linears with a format each, before anything is quantized."""
    dump("input", model.module)
    _check_rule(config, targets)
    select = SelectFormats(
        weight_format=config.weight_format,
        act_format=config.activation_format,
        weight_rule=config.weight_rule,
        act_rule=config.activation_rule,
        supports=lambda weight, act: next(
            filter(None, (target.supports(weight, act) for target in targets)), ""
        ),
        include=config.include,
        exclude=config.exclude,
        on_unsupported=config.on_unsupported,
        quantizer=config.quantizer,
        requested=AUTO if config.chooses else "",
    )
    return run((*PREPARE, select), model, dump)


def _check_rule(config: CompileConfig, targets: Sequence[Target]) -> None:
    rule = config.activation_rule
    lacking = (t for t in targets if rule not in (WEIGHT_ONLY, *t.activation_rules))
    if (target := next(lacking, None)) is not None:
        raise ConfigError(
            f"target {target.name} cannot quantize activations by the scale rule {rule}: choose "
            f"one of {', '.join(sorted(target.activation_rules))}"
        )


def measured(
    source: Any,
    imported: Model,
    planned: Model,
    config: CompileConfig,
    data: Any,
    work: Work,
    progress: Progress,
) -> tuple[Decided, Measured] | None:
    """What calibration says of every layer; None where nothing is to be decided by it."""
    if not config.measures:
        return None
    if data is None:
        data = config.calibration_data or config.calibration
    observed = run(OBSERVE, imported)
    identity = {"inputs": json.dumps(config.inputs), "model": digest_of(imported)}
    rules = (target.activation_rules for target in targets_named(config.target))
    return decide(
        observed,
        planned.layers,
        config,
        data,
        identity,
        work,
        progress,
        frozenset.intersection(*rules),
        _gradients(source, planned, config),
        _kernel_seconds(config),
    )


def _gradients(source: Any, planned: Model, config: CompileConfig) -> Gradients | None:
    """Of a torch program, where the choice is made by them. Raises ConfigError for another."""
    if config.sensitivity != "fisher":
        return None
    if kind_of(source) != "torch":
        raise ConfigError(
            "sensitivity fisher takes gradients, which only torch gives: compile a .pt2 or a "
            "torch.export program instead of ONNX, or choose sensitivity model"
        )
    from lbcompiler.decisions.fisher import fisher  # needs torch

    return partial(fisher, source, planned.layers)


def _kernel_seconds(config: CompileConfig) -> KernelSeconds | None:
    """Where the budget is one of time. Raises ConfigError on a machine that cannot run them."""
    if config.max_latency is None:
        return None
    tuned = _tuning_results(config)
    sources = () if tuned is None else tuned.sources
    return kernel_seconds(config.target, sources, config.hadamard_seed)


def said_data(data: Any) -> str | None:
    """Calibration data as the config remembers it."""
    if data is None or isinstance(data, (str, Path)):
        return None if data is None else str(data)
    return f"an iterator ({type(data).__name__})"


def _quantize(model: Model, decided: Decided | None, config: CompileConfig, dump: Dump) -> Model:
    quantizer, known = QUANTIZERS[config.quantizer].quantize, None
    if decided is not None:  # what is left to quantize are outliers, in a wide format
        quantizer, known = round_to_nearest, decided.codes(model.module)
    passes: tuple[Pass, ...] = (
        *(_forced(model, config) if decided is None else _applied(decided)),
        *quantize(quantizer, known),
    )
    return run(passes, model, dump)


def _build(
    targets: Sequence[Target],
    programs: Sequence[Model],
    folder: Path,
    keep_source: bool,
    dump: Dump,
) -> list[KernelUse]:
    """Writes the code of every target, the first as `model.so`."""
    kernels: list[KernelUse] = []
    for index, (target, model) in enumerate(zip(targets, programs, strict=True)):
        source = folder / f"source.{target.isa}" if keep_source else None
        library = folder / (f"model.{target.isa}.so" if index else CODE)
        files = Files(library, folder / kernels_file(target.isa), source)
        kernels += target.build(model.module, model.dims, files, dump)
    return kernels


def _destination(output: str | Path | None, force: bool) -> AbstractContextManager[Path]:
    return _temporary_folder() if output is None else new_folder(Path(output), force)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="lbc-"))
    with unfinished(folder):
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _applied(decided: Decided) -> tuple[Pass, ...]:
    residual = () if decided.residual is None else (RotateResidual(decided.residual),)
    smooth = (Smooth(decided.smoothings),) if decided.smoothings else ()
    fold = (FoldRotations(decided.folded),) if decided.folded else ()
    split = (SplitOutliers(decided.splits),) if decided.splits else ()
    return (*residual, *smooth, *fold, *split, ApplyDecisions(decided.decisions))


def _forced(model: Model, config: CompileConfig) -> tuple[Pass, ...]:
    """A rotation that was asked for by its size, of every quantized layer."""
    if not isinstance(config.hadamard, int):
        return ()
    rotation = Rotation(config.hadamard, config.hadamard_seed)
    quantized = (n for n, layer in model.layers.items() if layer.weight_format != WEIGHT_ONLY)
    return (Rotate(dict.fromkeys(quantized, rotation)),)
