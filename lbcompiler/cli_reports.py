"""The result of each verb, as text for people or as the JSON of docs/json.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from lbcompiler.cli_kernels import spills
from lbcompiler.cli_show import print_json, print_line, print_table, print_warning, shape, size

if TYPE_CHECKING:
    from lbcompiler.artifact import Artifact, TuningRecord
    from lbcompiler.config import CompileConfig
    from lbcompiler.doctor import Checkup
    from lbcompiler.report.analysis import Analysis
    from lbcompiler.tuning.tuner import Outcome, Tuner
    from lbcompiler.verify import Verification

MOST_SENSITIVE = 12  # groups of layers that a terminal shows
LAYER_COLUMNS = (
    "layer",
    "op",
    "shape",
    "requested",
    "realized",
    "bits",
    "activations",
    "quantizer",
    "scale rule",
    "hadamard",
    "epilogue",
    "kernel",
    "tuned by",
    "reason",
)


def plan(layers: Sequence[Any], config: "CompileConfig", as_json: bool) -> None:
    """`lbc compile --dry-run`."""
    if as_json:
        settings = config.model_dump(mode="json")
        print_json({"config": settings, "layers": [asdict(layer) for layer in layers]})
        return
    _print_layers(layers)
    print_line(f"{_count(layers)}; nothing was written")


def compiled(
    artifact: "Artifact", seconds: float, speed: Mapping[str, float] | str, as_json: bool
) -> None:
    """`lbc compile`. `speed` is a reason where it was not measured."""
    manifest = artifact.manifest
    if as_json:
        print_json(
            {
                "artifact": str(artifact.path),
                "seconds": round(seconds, 3),
                "bytes": sum(record.bytes for record in manifest.files.values()),
                "speed": None if isinstance(speed, str) else speed,
                "speed_missing": speed if isinstance(speed, str) else "",
                "manifest": manifest.model_dump(mode="json"),
            }
        )
        return
    totals = manifest.totals
    print_line(
        f"{artifact.path}: {_count(manifest.layers)}; their weights take "
        f"{size(totals.weight_bytes)} (float32: {size(totals.float_bytes)}); {seconds:.1f} s"
    )
    for name, said in manifest.judged.items():
        print_line(f"{name}: {said}")
    if manifest.pareto:
        print_line(
            "what other budgets would give before the gate on the whole model "
            "(lbc inspect --json: every layer's format):"
        )
        _print_front(manifest.pareto)
    if manifest.tuning is not None:
        print_line(_tuning(manifest.tuning))
    for warning in spills(manifest.kernels):
        print_warning(warning)
    print_line(_speed(speed))


def analyzed(found: "Analysis", output: Path | None, as_json: bool) -> None:
    """`lbc analyze`: the most sensitive layers, the front, and where the rest is to be read."""
    if as_json:
        print_json({"report": None if output is None else str(output), **asdict(found)})
        return
    formats = [option.name for option in found.groups[0].options]
    print_line(
        f"{found.cost_name}: one group of layers alone in each format, the most sensitive first"
    )
    rows = [
        (group.name, len(group.layers), *(option.cost for option in group.options))
        for group in found.groups[:MOST_SENSITIVE]
    ]
    print_table(("first layer", "layers", *formats), rows)
    if left := len(found.groups) - len(rows):
        print_line(f"{left} more groups are in the report")
    print_line("measured plans, before the gate that only a chosen one passes:")
    _print_front(found.front)
    for name, said in found.judged.items():
        print_line(f"{name}: {said}")
    if found.chosen is not None:
        kl = "" if found.chosen.kl is None else f"KL {found.chosen.kl:.4g} nats a token, "
        print_line(
            f"the compiler would choose: {found.chosen.effective_bits:.4g} bits a weight, "
            f"{kl}QSNR {found.chosen.qsnr_db:.4g} dB"
        )
    outliers = sum(bool(layer.outliers) for layer in found.layers)
    print_line(f"{len(found.layers)} layers, {outliers} with outliers; the report: {output}")


def _print_front(points: Iterable[Any]) -> None:
    rows = [(p.effective_bits, p.kl, p.qsnr_db) for p in points]
    print_table(("bits a weight", "KL, nats a token", "QSNR, dB"), rows)


def _tuning(record: "TuningRecord") -> str:
    others = f" and {record.other_versions} for others, not used"
    return (
        f"tuning: {record.layers} layers use {record.database}, which has {record.results} results "
        "for these versions" + others * bool(record.other_versions)
    )


def _speed(speed: Mapping[str, float] | str) -> str:
    if isinstance(speed, str):
        return f"speed: not measured ({speed})"
    verdict = "faster" if speed["ratio"] >= 1 else "SLOWER"
    times = speed["ratio"] if speed["ratio"] >= 1 else 1 / speed["ratio"]
    return (
        f"speed: {speed['ms']:.3g} ms, the float model {speed['float_ms']:.3g} ms here: "
        f"{times:.2f} times {verdict}"
    )


def ran(outputs: Mapping[str, Any], seconds: float, saved: Path | None, as_json: bool) -> None:
    """`lbc run`."""
    if as_json:
        described = {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in outputs.items()
        }
        print_json(
            {
                "outputs": described,
                "milliseconds": round(seconds * 1e3, 3),
                "saved": None if saved is None else str(saved),
            }
        )
        return
    rows = [(name, str(array.dtype), shape(array.shape)) for name, array in outputs.items()]
    print_table(("output", "dtype", "shape"), rows)
    print_line(f"one run: {seconds * 1e3:.3g} ms" + (f"; saved to {saved}" if saved else ""))


def manifest(artifact: "Artifact", with_layers: bool, as_json: bool) -> None:
    """`lbc inspect`; whoever opened the artifact has checked its hashes."""
    held = artifact.manifest
    if as_json:
        print_json(held.model_dump(mode="json"))
        return
    made = ", ".join(f"{name} {version}" for name, version in held.created_by.items())
    bounds = [f"{d.name} {d.low}..{'' if d.high is None else d.high}" for d in held.dims]
    facts = [
        ("artifact", f"{artifact.path} (schema {held.schema_version}, all hashes verified)"),
        ("made by", made),
        ("from", f"{held.source.path} ({held.source.kind}, sha256 {held.source.sha256[:16]})"),
        ("for", f"{held.target.name}:{','.join(held.isas)}"),
        *((f"input {p.name}", f"{p.dtype} {shape(p.shape)}") for p in held.inputs),
        *((f"output {p.name}", f"{p.dtype} {shape(p.shape)}") for p in held.outputs),
        ("dimensions", ", ".join(bounds)),
        ("in place", ", ".join(f"{s.input} -> {s.output}" for s in held.states)),
        *((name, size(record.bytes)) for name, record in held.files.items()),
        *held.judged.items(),
        ("bits a weight", "" if held.effective_bits is None else f"{held.effective_bits:.4g}"),
    ]
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        if fact:
            print_line(f"{name:{width}}  {fact}")
    if with_layers:
        _print_layers(held.layers)
    if held.pareto:
        _print_front(held.pareto)
    totals = held.totals
    print_line(
        f"{_count(held.layers)}; their weights take {size(totals.weight_bytes)} "
        f"(float32: {size(totals.float_bytes)})"
    )


def verification(found: "Verification", as_json: bool) -> None:
    """`lbc verify`."""
    if as_json:
        layers = [{"name": name, "qsnr_db": value} for name, value in found.layers or ()]
        skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
        held = {} if found.layers is None else {"layers": layers, "skipped": skipped}
        print_json({"samples": found.samples, "outputs": found.outputs, **held})
        return
    if found.layers is not None:
        print_table(("layer", "qsnr_db"), found.layers)
    if found.skipped:
        print_line("not compared, because they compute something else than the source's layers:")
        print_table(("layer", "reason"), found.skipped)
    columns = list(dict.fromkeys(key for figures in found.outputs.values() for key in figures))
    rows = [
        (name, *(figures.get(column) for column in columns))
        for name, figures in found.outputs.items()
    ]
    print_table(("output", *columns), rows)
    print_line(f"{found.samples} sample{'s' * (found.samples != 1)}")


def tuned(
    tuner: "Tuner",
    outcomes: Sequence["Outcome"],
    other_versions: int,
    exported: Path | None,
    count: int | None,
    as_json: bool,
) -> None:
    """`lbc tune`. `count` results were exported."""
    processor = tuner.machine.processor
    if as_json:
        print_json(
            {
                "database": tuner.database,
                "processor": processor,
                "results": [asdict(outcome) for outcome in outcomes],
                "other_versions": other_versions,
                "exported": None if exported is None else str(exported),
            }
        )
        return
    if outcomes:
        kept(outcomes, tuner.database)
    if exported is not None:
        print_line(f"{exported}: {count} faster configs of {processor}, {tuner.isa}")
    if other_versions:
        print_line(
            f"{other_versions} results of other versions of lbcompiler or TVM are in "
            f"{tuner.database}; they are not used"
        )


def kept(outcomes: Sequence["Outcome"], database: str) -> None:
    """What `lbc tune` has found so far; also where it is interrupted."""
    rows = [
        (
            outcome.kernel,
            shape(outcome.shape),
            outcome.trials,
            outcome.failed or None,
            outcome.default_ms,
            outcome.ms,
            _changes(outcome),
        )
        for outcome in outcomes
    ]
    columns = ("kernel", "MxKxN", "trials", "failed", "default ms", "best ms", "best config")
    print_table(columns, rows)
    print_line(f"kept in {database}; lbc compile --tuning-db uses it")


def _changes(outcome: "Outcome") -> str:
    changed = [
        f"{name} {value} (not {outcome.default[name]})"
        for name, value in outcome.config.items()
        if value != outcome.default[name]
    ]
    return ", ".join(changed) or "the default"


def formats(rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    """`lbc formats`. A folder of `lbcompiler.targets` is a target; looking loads none of them."""
    found = find_spec("lbcompiler.targets")
    folders = [] if found is None else iter_modules(found.submodule_search_locations)
    targets = [module.name for module in folders if module.ispkg]
    table = [{**row, "targets": targets} for row in rows]
    if as_json:
        print_json({"formats": table})
        return
    columns = (
        "format",
        "bits",
        "block",
        "element",
        "magnitudes",
        "scale",
        "scale rules",
        "runs on",
    )
    print_table(
        columns,
        [
            (
                row["name"],
                row["bits_per_element"],
                row["block"],
                row["element"],
                f"{row['element_smallest']:g} .. {row['element_max']:g}",
                row["scale"] + ("" if row["tensor_scale"] == "none" else " x float32 a tensor"),
                ", ".join(
                    f"{rule} (default)" if rule == row["default_rule"] else rule
                    for rule in row["rules"]
                ),
                ", ".join(row["targets"]),
            )
            for row in table
        ],
    )


def checkup(found: "Checkup", as_json: bool) -> None:
    """`lbc doctor`."""
    if as_json:
        print_json(asdict(found))
        return
    machine = found.machine
    print_line(f"lbcompiler {found.version} on {machine.system}")
    print_line(
        f"{machine.cpu}, {machine.architecture}: {machine.usable_cores} of {machine.cores} cores "
        f"(threads by default); {size(machine.available_bytes)} of "
        f"{size(machine.memory_bytes)} free"
    )
    print_line(f"vector flags: {' '.join(machine.vector_flags) or 'not known'}")
    sets = [
        f"{i.name} ({'chosen' if i.is_chosen else 'runs here' if i.runs_here else 'not here'})"
        for i in found.instruction_sets
    ]
    print_line(f"kernels for: {', '.join(sets) or 'nothing'}")
    for gpu in found.gpus:
        print_line(f"GPU: {gpu}")
    tools = [(tool.name, tool.version or "-", tool.path, tool.purpose) for tool in found.tools]
    print_table(("tool", "found", "path", "purpose"), tools)
    packages = [
        (p.name, p.wanted, p.found or "-", p.extra, "" if p.is_ok else p.install)
        for p in found.packages
    ]
    print_table(("package", "wanted", "found", "only for", "install with"), packages)
    for problem in found.problems:
        print_line(f"PROBLEM: {problem}")
    if not found.problems:
        print_line("no problems found")


def _print_layers(layers: Iterable[Any]) -> None:
    from lbcompiler.formats import FORMATS

    bits = {name: fmt.bits_per_element for name, fmt in FORMATS.items()}
    print_table(
        LAYER_COLUMNS,
        [
            (
                layer.name,
                layer.op,
                shape(layer.shape),
                layer.requested,
                layer.realized,
                bits.get(layer.weight_format),
                *map(_or_empty, (layer.activation_format, layer.quantizer, layer.scale_rule)),
                f"{layer.hadamard} folded" if layer.hadamard_folded else layer.hadamard or None,
                _or_empty(layer.epilogue),
                layer.kernel,
                "" if layer.config_source == "default" else layer.config_source,
                layer.reason,
            )
            for layer in layers
        ],
    )


def _or_empty(name: str) -> str:
    return "" if name == "none" else name


def _count(layers: Iterable[Any]) -> str:
    """How many layers run in which format, and how many not as requested."""
    layers = list(layers)
    counts: dict[str, int] = {}
    for layer in layers:
        with_act = "" if layer.activation_format == "none" else f" x {layer.activation_format}"
        name = f"{layer.realized}{with_act}"
        counts[name] = counts.get(name, 0) + 1
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    other = sum(layer.requested not in (layer.realized, "auto") for layer in layers)
    return f"{len(layers)} layers ({parts})" + (f", {other} not as requested" * bool(other))
