"""`lbc`: the verbs, and nothing but them. What they do is in the modules they call.

Nothing heavy is imported before a verb needs it: `lbc --help` and `lbc formats` load no TVM and no
ONNX.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lbcompiler import cli_options as options
from lbcompiler import cli_options_decide as decide
from lbcompiler import cli_reports as reports
from lbcompiler import cli_show as show
from lbcompiler.cli_analyze import analyze
from lbcompiler.cli_errors import USER, Verb
from lbcompiler.cli_signals import end_on_signals, exit_of_interruption


def _examples(*commands: str) -> str:
    """A line each below the help of a verb."""
    return "\n\n".join(("Examples:", *(f"`{command}`" for command in commands)))


app = typer.Typer(
    name="lbc",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples("lbc compile m.onnx --format nvfp4", "lbc inspect m.lbc"),
)


def main() -> None:
    """The console script."""
    end_on_signals()
    with exit_of_interruption():
        app()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        show.print_line(f"lbc {version('lbcompiler')}")
        raise typer.Exit


@app.callback()
def lbc(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="LBC_DEBUG", help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Compile float models to block-scaled low-bit code, run them, and check them."""


@app.command(
    cls=Verb,
    epilog=_examples(
        "lbc compile m.onnx --format nvfp4 -o m.lbc",
        "lbc compile m.onnx --format mxfp4 --act-format none --exclude lm_head --dry-run",
        "lbc compile m.pt2 --format mxint8 --input 'x:1x(1..512)' --save-config m.yaml",
        "lbc compile m.onnx --format nvint4 --quantizer mr_gptq --calibration-data calib.npz",
        "lbc compile m.onnx --effective-bits 5 --quantizer mr_gptq --calibration-data calib.npz",
        "lbc compile m.onnx --target cuda:sm_80,sm_90a --format nvfp4",
    ),
)
def compile(
    model: options.Model,
    output: options.Output = None,
    target: options.Target = None,
    format: options.Format = None,
    act_format: options.ActFormat = None,
    scale_rule: options.ScaleRule = None,
    act_scale_rule: options.ActScaleRule = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    shapes: options.Shapes = None,
    config: options.Config = None,
    save_config: options.SaveConfig = None,
    on_unsupported: options.OnUnsupported = None,
    tuning_db: options.TuningDb = None,
    quantizer: decide.Quantizer = None,
    hadamard: decide.Hadamard = None,
    hadamard_seed: decide.HadamardSeed = None,
    rotate_residual: decide.RotateResidual = None,
    smooth: decide.Smooth = None,
    outliers: decide.Outliers = None,
    calibration_data: decide.CalibrationData = None,
    calibration: decide.Calibration = None,
    calibration_samples: decide.CalibrationSamples = None,
    formats: decide.Formats = None,
    effective_bits: decide.EffectiveBits = None,
    max_kl: decide.MaxKl = None,
    min_qsnr: decide.MinQsnr = None,
    max_latency: decide.MaxLatency = None,
    sensitivity: decide.Sensitivity = None,
    state: decide.State = None,
    jobs: decide.Jobs = None,
    jobs_backend: decide.JobsBackend = "loky",
    dry_run: options.DryRun = False,
    dump_ir: options.DumpIr = None,
    keep_source: options.KeepSource = False,
    force: options.Force = False,
    no_measure: options.NoMeasure = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compile a model to an artifact: a folder with code, packed weights and a manifest."""
    import lbcompiler
    from lbcompiler.config import make_config
    from lbcompiler.decisions.work import Work
    from lbcompiler.files import appearing

    settings = make_config(decide.settings(locals()), config)
    output = output or Path(f"{model.stem}.lbc")
    if save_config is not None:
        with appearing(save_config) as partial:
            partial.write_text(settings.to_yaml())
    start = time.perf_counter()
    with show.progress_bar(quiet) as progress:
        if dry_run:
            reports.plan(lbcompiler.plan(model, settings, progress, dump_ir), settings, as_json)
            return
        artifact = lbcompiler.compile(
            model,
            config=settings,
            output=output,
            work=Work(state or output.with_suffix(".state"), jobs, jobs_backend),
            force=force,
            keep_source=keep_source,
            dump_ir=dump_ir,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        speed = "not asked for" if no_measure else show.speed(artifact, model, progress)
    if as_json or not quiet:
        reports.compiled(artifact, seconds, speed, as_json)


app.command(
    cls=Verb,
    epilog=_examples(
        "lbc analyze m.onnx --calibration-data calib.npz -o report.html",
        "lbc analyze m.onnx --calibration-data calib.npz --effective-bits 5 --quantizer mr_gptq",
        "lbc analyze m.onnx --calibration-data calib.npz --formats nvfp4,mxint8,float --json",
    ),
)(analyze)


@app.command(
    cls=Verb,
    epilog=_examples(
        "lbc run m.lbc --input-data sample.npz -o out.npz",
        "lbc run m.lbc --input ids=ids.npy --input mask=mask.npy --threads 4",
    ),
)
def run(
    artifact: options.Artifact,
    input_data: options.InputData = None,
    files: options.InputFiles = None,
    output: options.Outputs = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run an artifact once on given inputs; say shapes, dtypes and time."""
    import lbcompiler
    from lbcompiler.data import read_feeds, save_arrays

    program = lbcompiler.load(artifact, threads)
    feeds = read_feeds(input_data, files or (), program.manifest.inputs)
    start = time.perf_counter()
    outputs = program.run(feeds)
    seconds = time.perf_counter() - start
    if output is not None:
        save_arrays(output, outputs)
    reports.ran(outputs, seconds, output, as_json)


@app.command(
    cls=Verb,
    epilog=_examples("lbc inspect m.lbc --json | jq .totals", "lbc inspect m.lbc --kernels"),
)
def inspect(
    artifact: options.Artifact,
    layers: options.Layers = True,
    kernels: options.Kernels = False,
    as_json: options.Json = False,
) -> None:
    """Show what an artifact holds and what became of every layer; no code is loaded."""
    from lbcompiler import cli_kernels
    from lbcompiler.artifact import open_artifact

    if kernels:
        cli_kernels.kernels(open_artifact(artifact), as_json)
        return
    reports.manifest(open_artifact(artifact), layers, as_json)


@app.command(
    cls=Verb,
    epilog=_examples("lbc verify m.lbc --reference m.onnx --data sample.npz --per-layer"),
)
def verify(
    artifact: options.Artifact,
    reference: options.ReferenceModel,
    data: options.Data,
    metrics: options.Metrics = None,
    per_layer: options.PerLayer = False,
    threads: options.Threads = None,
    limit: options.Limit = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure how close an artifact is to its float model, run by onnxruntime or torch."""
    import lbcompiler
    from lbcompiler.metrics import parse_metrics
    from lbcompiler.verify import verify as compare

    program = lbcompiler.load(artifact, threads)
    with show.progress_bar(quiet) as progress:
        found = compare(
            program,
            reference,
            data,
            metrics=None if metrics is None else parse_metrics(metrics),
            per_layer=per_layer,
            threads=threads,
            limit=limit,
            progress=progress,
        )
    reports.verification(found, as_json)


@app.command(
    cls=Verb,
    epilog=_examples(
        "lbc tune --shape 128x4096x4096 --format nvfp4",
        "lbc tune m.onnx --format mxint8 --input 'x:1x128' --db tuning.db",
        "lbc tune --db tuning.db --export tuning.json",
    ),
)
def tune(
    model: options.MaybeModel = None,
    shape: options.LinearShapes = None,
    target: options.Target = None,
    format: options.Format = None,
    act_format: options.ActFormat = None,
    shapes: options.Shapes = None,
    rows: options.Rows = None,
    trials: options.Trials = 60,
    seconds: options.Seconds = 45,
    db: options.Database = None,
    jobs: options.Jobs = 1,
    threads: options.Threads = None,
    rpc: options.Rpc = None,
    export: options.Export = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Search faster configs of kernels by measuring; resumable, for `lbc compile --tuning-db`."""
    from lbcompiler.config import make_config, parse_inputs
    from lbcompiler.errors import ConfigError
    from lbcompiler.tuning.search import Limits
    from lbcompiler.tuning.tuner import ROWS, open_tuner, work_for
    from lbcompiler.tuning.work import parse_shape

    if model is None and not shape and export is None:
        raise ConfigError("there is nothing to tune: name a MODEL, a --shape MxKxN or both")
    said = {"target": target, "format": format, "act_format": act_format}
    settings = make_config(
        {k: v for k, v in said.items() if v is not None} | {"inputs": parse_inputs(shapes or ())}
    )
    wanted = [parse_shape(text) for text in shape or ()]
    outcomes: list[Any] = []
    with (
        open_tuner(settings.target, db, threads=threads, rpc=rpc) as tuner,
        show.progress_bar(quiet) as progress,
    ):
        work = work_for(tuner, settings, model, wanted, rows or ROWS)
        try:
            for outcome in tuner.run(work, Limits(trials, seconds, jobs), progress):
                outcomes.append(outcome)
        except BaseException:
            if outcomes and not (as_json or quiet):
                reports.kept(outcomes, tuner.database)
            raise
        count = None if export is None else tuner.export(export)
        others = tuner.other_versions()
    if as_json or not quiet:
        reports.tuned(tuner, outcomes, others, export, count, as_json)


@app.command(
    cls=Verb,
    epilog=_examples(
        "lbc bench gemm --format mxint8,nvfp4 --shape 128x4096x4096 --peers onnxruntime,openvino",
        "lbc bench gemm --format mxfp4 1x4096x4096 1x4096x14336 --hot --threads 1",
        "lbc bench m.lbc --against m.onnx --input input_ids:8x128 --profile",
    ),
)
def bench(
    what: options.BenchWhat,
    more: options.BenchShapes = None,
    format: options.BenchFormats = None,
    act_format: options.BenchActFormat = None,
    shape: options.BenchShape = None,
    target: options.BenchTarget = None,
    tuning_db: options.BenchTuningDb = None,
    hot: options.Hot = False,
    against: options.Against = None,
    inputs: options.BenchInputs = None,
    profile: options.Profile = False,
    peers: options.Peers = None,
    threads: options.Threads = None,
    rounds: options.Rounds = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Time a linear or a compiled model beside other runtimes and the machine's own limits."""
    from lbcompiler import cli_bench
    from lbcompiler.bench import asked

    common: dict[str, Any] = {"peers": peers, "threads": threads, "rounds": rounds}
    of_gemm: dict[str, Any] = {
        "format": format,
        "act_format": act_format,
        "shape": [*(shape or ()), *(more or ())],
        "target": target,
        "tuning_db": tuning_db,
        "hot": hot,
    }
    of_model: dict[str, Any] = {"against": against, "input": inputs, "profile": profile}
    with show.progress_bar(quiet) as progress:
        if what == options.GEMM:
            asked.refuse(of_model, "lbc bench OUT.lbc")
            rows = asked.gemm(**of_gemm, **common, progress=progress)
        else:
            asked.refuse(of_gemm, "lbc bench gemm")
            speed = asked.model(what, **of_model, **common, progress=progress)
    if what == options.GEMM:
        cli_bench.gemm(rows, as_json)
    else:
        cli_bench.model(speed, as_json)


@app.command(cls=Verb)
def formats(as_json: options.Json = False) -> None:
    """List the block-scaled formats."""
    from lbcompiler.formats import table

    reports.formats(table(), as_json)


@app.command(cls=Verb)
def doctor(as_json: options.Json = False) -> None:
    """Say what this machine and installation can do, and what is wrong with them."""
    from lbcompiler.doctor import examine

    found = examine()
    reports.checkup(found, as_json)
    if found.problems:
        raise typer.Exit(USER)
