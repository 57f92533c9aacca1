"""The options of `lbc`, one spelling for all verbs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Names = list[tuple[str, str]]
GEMM = "gemm"  # what `lbc bench` takes instead of an artifact
OF_GEMM, OF_MODEL = "Options of lbc bench gemm", "Options of lbc bench OUT.lbc"


def completing(names: Callable[[], Names]) -> Callable[[str], Names]:
    """For the shell: (name, help) of what starts like the word under the cursor."""
    return lambda incomplete: [pair for pair in names() if pair[0].startswith(incomplete)]


def _formats() -> Names:
    from lbcompiler.formats import FORMATS

    return [(name, f"{fmt.bits_per_element:g} bits") for name, fmt in FORMATS.items()]


def _formats_or_none() -> Names:
    return [*_formats(), ("none", "weights only")]


def _rules() -> Names:
    from lbcompiler.formats import FORMATS

    rules: dict[str, list[str]] = {}
    for fmt in FORMATS.values():
        for rule in fmt.rules:
            rules.setdefault(rule, []).append(fmt.name)
    return [(rule, ", ".join(names)) for rule, names in rules.items()]


def _what_to_bench(incomplete: str) -> Names:
    from glob import glob

    artifacts = [(path, "a compiled model") for path in glob(f"{incomplete}*.lbc")]
    return [name for name in [(GEMM, "one linear"), *artifacts] if name[0].startswith(incomplete)]


def _peers(incomplete: str) -> Names:
    """Of a list with commas, the last."""
    done, comma, _ = incomplete.rpartition(",")
    names = (("onnxruntime", "float, int8"), ("openvino", "float, int8"), ("torch", "for .pt2"))
    offered = [(f"{done}{comma}{name}", text) for name, text in names if name not in done]
    return [pair for pair in offered if pair[0].startswith(incomplete)]


def _on_unsupported() -> Names:
    return [
        ("error", "stop and say why"),
        ("fallback", "keep the activations, or the layer, in float"),
        ("skip", "leave the layer in float"),
    ]


Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A float model: .onnx or .pt2.", show_default=False),
]
Artifact = Annotated[
    Path,
    typer.Argument(metavar="OUT.lbc", help="What `lbc compile` made.", show_default=False),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The artifact to write.", show_default="MODEL's name .lbc"),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="REPORT.html",
        help="The page to write.",
        show_default="MODEL's name .html; none with --json",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")]
Target = Annotated[
    str | None,
    typer.Option(
        help="cpu, cpu:ISA for another machine, cuda, or cuda:ARCH,.. for other GPUs.",
        show_default="cpu, this machine's",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="Block format of weights and activations; `lbc formats` lists them.",
        autocompletion=completing(_formats),
        show_default="mxint8",
    ),
]
ActFormat = Annotated[
    str | None,
    typer.Option(
        help="Another format for activations, or none: weights only.",
        autocompletion=completing(_formats_or_none),
        show_default="as --format",
    ),
]
ScaleRule = Annotated[
    str | None,
    typer.Option(
        help="How a block's scale is chosen, for weights.",
        autocompletion=completing(_rules),
        show_default="the format's",
    ),
]
ActScaleRule = Annotated[
    str | None,
    typer.Option(
        help="The same for activations.",
        autocompletion=completing(_rules),
        show_default="the format's",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGEX", help="Quantize only layers whose name it is found in. Repeatable."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX", help="Leave these layers in float. Repeatable."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:SHAPE",
        help="Fix (x:1x128) or bound (x:1x(1..512)) an input's dimensions. Repeatable.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="Settings from YAML; options on the command line go first."),
]
SaveConfig = Annotated[Path | None, typer.Option(help="Write the settings of this run as YAML.")]
OnUnsupported = Annotated[
    str | None,
    typer.Option(
        metavar="error|fallback|skip",
        help="What to do with a layer that cannot have the format.",
        autocompletion=completing(_on_unsupported),
        show_default="error",
    ),
]
TuningDb = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|URL",
        help="Results of `lbc tune` for the kernels: a database, or the .json of an export.",
        show_default="those that are shipped",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan for every layer and stop.")]
DumpIr = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the program after every pass.")
]
KeepSource = Annotated[
    bool, typer.Option("--keep-source", help="Leave the CUDA text of every kernel in the artifact.")
]
NoMeasure = Annotated[
    bool, typer.Option("--no-measure", help="Do not time the result against the float model.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no summary.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout (docs/json.md).")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="every usable core")
]
InputData = Annotated[
    Path | None,
    typer.Option(
        help="Arrays by input name: .npz, a folder, or .npy for one input.", show_default=False
    ),
]
InputFiles = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME=FILE.npy", help="One input's array. Repeatable."),
]
Outputs = Annotated[
    Path | None, typer.Option("-o", "--output", help="Save the outputs to this .npz file.")
]
Layers = Annotated[bool, typer.Option("--layers/--no-layers", help="List every layer.")]
Kernels = Annotated[
    bool,
    typer.Option("--kernels", help="List a GPU's kernels: registers, spills, instructions."),
]
ReferenceModel = Annotated[
    Path,
    typer.Option("--reference", help="The float model it was made from.", show_default=False),
]
Data = Annotated[
    Path,
    typer.Option(help="Samples along the first axis: .npz, a folder, or .npy.", show_default=False),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Of qsnr, cosine, max_abs, kl, top1, perplexity.",
        show_default="all that apply",
    ),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="QSNR of every quantized layer too.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Use the first N samples.")]
MaybeModel = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL", help="Tune every linear of this .onnx or .pt2.", show_default=False
    ),
]
LinearShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="MxKxN",
        help="Tune a linear of M rows, K inputs and N outputs. Repeatable.",
    ),
]
Rows = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        metavar="M",
        help="Rows of MODEL's linears where its inputs leave them open. Repeatable.",
        show_default="1 and 128",
    ),
]
Trials = Annotated[
    int, typer.Option(min=1, metavar="N", help="Configs to try, in all runs together.")
]
Seconds = Annotated[
    float, typer.Option("--time", min=1, metavar="S", help="Seconds for each shape, in this run.")
]
Database = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="FILE|URL",
        help="Where results are kept: a file, or a database's URL for many machines.",
        show_default="one file of yours",
    ),
]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Candidates compiled at once.")]
Rpc = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT[:KEY]",
        help="Measure on another machine: a TVM RPC server, or a tracker with a key.",
        show_default="this machine",
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="Write what beats the shipped configs here as a table."),
]
BenchWhat = Annotated[
    str,
    typer.Argument(
        metavar="gemm|OUT.lbc",
        help="The word gemm for one linear, or an artifact (of that name: ./gemm).",
        autocompletion=_what_to_bench,
        show_default=False,
    ),
]
BenchShapes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MxKxN]...", help="As --shape, for gemm.", show_default=False),
]
BenchFormats = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="F,F",
        help="Block formats of weights and activations.",
        autocompletion=completing(_formats),
        show_default="mxint8",
        rich_help_panel=OF_GEMM,
    ),
]
BenchActFormat = Annotated[
    str | None,
    typer.Option(
        "--act-format",
        help="Another format for activations, or none: weights only.",
        autocompletion=completing(_formats_or_none),
        show_default="as --format",
        rich_help_panel=OF_GEMM,
    ),
]
BenchShape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="MxKxN",
        help="Rows, inputs and outputs of the linear. Repeatable.",
        show_default="128x4096x4096 and 1x4096x4096",
        rich_help_panel=OF_GEMM,
    ),
]
BenchTuningDb = Annotated[
    str | None,
    typer.Option(
        "--tuning-db",
        metavar="FILE|URL",
        help="Results of `lbc tune` for the kernels, as of `lbc compile`.",
        show_default="those that are shipped",
        rich_help_panel=OF_GEMM,
    ),
]
BenchTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="cpu, cpu:ISA, cuda or cuda:ARCH: what is timed is here.",
        show_default="cpu, this machine's",
        rich_help_panel=OF_GEMM,
    ),
]
Hot = Annotated[
    bool,
    typer.Option(
        "--hot",
        help="Leave the weights in the caches; else they are cold where M is below 16.",
        rich_help_panel=OF_GEMM,
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL",
        help="The float model, for other runtimes: .onnx or .pt2.",
        show_default=False,
        rich_help_panel=OF_MODEL,
    ),
]
BenchInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:SHAPE",
        help="The size of an input, e.g. input_ids:8x128. Repeatable.",
        show_default="1 sample, 128 along other dynamic dimensions",
        rich_help_panel=OF_MODEL,
    ),
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="The time, GOP/s and share of the ceiling of every kernel.",
        rich_help_panel=OF_MODEL,
    ),
]
Peers = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Others to time: onnxruntime, openvino, torch; on a GPU cublas, torch.",
        autocompletion=_peers,
        show_default="gemm: none; a model, or gemm on a GPU: those installed",
    ),
]
Rounds = Annotated[
    int | None, typer.Option(min=1, help="Visits of each; medians count.", show_default="11")
]
