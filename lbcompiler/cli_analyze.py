"""`lbc analyze`: what `lbc compile` would be told, and a page instead of an artifact."""

from pathlib import Path

from lbcompiler import cli_options as options
from lbcompiler import cli_options_decide as decide
from lbcompiler import cli_reports as reports
from lbcompiler import cli_show as show


def analyze(
    model: options.Model,
    output: options.Report = None,
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
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure what every layer can bear, and show it on a page: formats, outliers, the front."""
    import lbcompiler
    from lbcompiler.config import AnalysisConfig, make_config
    from lbcompiler.decisions.work import Work
    from lbcompiler.files import appearing

    settings = make_config(decide.settings(locals()), config, AnalysisConfig)
    if save_config is not None:
        with appearing(save_config) as partial:
            partial.write_text(settings.to_yaml())
    page = output or Path(f"{model.stem}.html")
    if output is None and not as_json:
        output = page
    with show.progress_bar(quiet) as progress:
        found = lbcompiler.analyze(
            model,
            output=output,
            config=settings,
            work=Work(state or page.with_suffix(".state"), jobs, jobs_backend),
            progress=progress,
        )
    if as_json or not quiet:
        reports.analyzed(found, output, as_json)
