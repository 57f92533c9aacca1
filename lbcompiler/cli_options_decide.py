"""The options of `lbc compile` and `lbc analyze` that decide layer by layer, by measuring."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lbcompiler.cli_options import Names, completing

CALIBRATION, CHOICE, WORK = "Calibration", "Choice of formats", "Measuring"


def _quantizers() -> Names:
    from lbcompiler.quantizers import QUANTIZERS

    return [(name, method.about) for name, method in QUANTIZERS.items()]


Quantizer = Annotated[
    str | None,
    typer.Option(
        help="How weights become codes: rtn, mse, gptq, mr_gptq, quantease.",
        autocompletion=completing(_quantizers),
        show_default="rtn",
        rich_help_panel=CALIBRATION,
    ),
]
Hadamard = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|N",
        help="Rotate inputs and weights by block Hadamards: where measuring says that it helps, "
        "nowhere, or everywhere in blocks of N.",
        show_default="off; auto with mr_gptq",
        rich_help_panel=CALIBRATION,
    ),
]
HadamardSeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Random signs before the rotation, by this seed.",
        show_default="no signs",
        rich_help_panel=CALIBRATION,
    ),
]
RotateResidual = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off",
        help="Rotate the residual stream of a model with RMS norms, folded into its weights, if "
        "measuring says that it helps.",
        show_default="off",
        rich_help_panel=CALIBRATION,
    ),
]
Smooth = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off",
        help="Even out the channels of inputs (SmoothQuant, Outlier Suppression+) where measuring "
        "says that it helps.",
        show_default="off",
        rich_help_panel=CALIBRATION,
    ),
]
Outliers = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|N",
        help="Multiply outlier channels of inputs a second time, in mxint8, where measuring says "
        "that it helps: those that stand out (LLM.int8()), none, or the N loudest of each input.",
        show_default="off",
        rich_help_panel=CALIBRATION,
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DIR|MODULE:FUNCTION",
        help="Samples of the inputs: .npz, .npy, a folder, or a function that yields feeds.",
        show_default=False,
        rich_help_panel=CALIBRATION,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="random",
        help="Calibrate on noise: decisions are then worth little.",
        show_default=False,
        rich_help_panel=CALIBRATION,
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        min=1, help="Use so many of them.", show_default="all", rich_help_panel=CALIBRATION
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Formats to choose from for every layer, float among them; with a budget.",
        show_default="nvfp4,nvint4,mxfp4,mxfp6,mxint6,mxint8",
        rich_help_panel=CHOICE,
    ),
]
EffectiveBits = Annotated[
    float | None,
    typer.Option(
        help="Budget: mean bits of a weight, scales included.",
        show_default=False,
        rich_help_panel=CHOICE,
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        help="Budget: the fewest bits whose KL to the float model is at most this, nats a token.",
        show_default=False,
        rich_help_panel=CHOICE,
    ),
]
MinQsnr = Annotated[
    float | None,
    typer.Option(
        help="Budget: the fewest bits whose worst output has at least this QSNR, dB.",
        show_default=False,
        rich_help_panel=CHOICE,
    ),
]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        help="Budget: kernels may take so many times what the fastest formats' take.",
        show_default=False,
        rich_help_panel=CHOICE,
    ),
]
Sensitivity = Annotated[
    str | None,
    typer.Option(
        metavar="model|output|fisher",
        help="How a layer's share of the damage is measured: on the model's output, on its own, or "
        "by gradients of the model's output (of a .pt2, with torch).",
        show_default="model",
        rich_help_panel=CHOICE,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where measurements are kept, for the next run and after Ctrl-C.",
        show_default="the output's name .state",
        rich_help_panel=WORK,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that quantize groups of layers.",
        show_default="every usable core",
        rich_help_panel=WORK,
    ),
]
JobsBackend = Annotated[
    str,
    typer.Option(
        metavar="loky|ray|dask",
        help="Where they run: here, or on a cluster (RAY_ADDRESS, DASK_SCHEDULER_ADDRESS).",
        rich_help_panel=WORK,
    ),
]


def names(said: str | None) -> tuple[str, ...] | None:
    """`a,b` -> ("a", "b")."""
    return None if said is None else tuple(n.strip() for n in said.split(",") if n.strip())


def size(said: str | None) -> str | int | None:
    """A number as one; anything else as it is."""
    return int(said) if said is not None and said.isdecimal() else said


def settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a verb's arguments say of the fields of a CompileConfig. Raises ConfigError."""
    from lbcompiler.config import CompileConfig, parse_inputs

    said = {
        **arguments,
        "inputs": parse_inputs(arguments["shapes"] or ()),
        "formats": names(arguments["formats"]),
        "hadamard": size(arguments["hadamard"]),
        "outliers": size(arguments["outliers"]),
    }
    fields = CompileConfig.model_fields
    return {k: v for k, v in said.items() if k in fields and v not in (None, [], {})}
