"""Figures of single tensors: crest factors, and QSNR in every format, as they are and rotated.

The tensors are weights and inputs of a model's linears, ROWS rows of each. Rotations are arXiv
2510.25602's: block Hadamards with random signs, of the format's own block for QSNR, of 32 for crest
factors. Scales are its too: rounded up (`rceil`) for MX, `absmax` for NV; an input has a tensor
scale a row, as our kernels give it one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lbcompiler.calibration.collect import collect
from lbcompiler.calibration.samples import read_samples
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.formats import format_named
from lbcompiler.frontend import import_model
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes import OBSERVE
from lbcompiler.pipeline import run
from tests.bench.fake_quantized import Array, qsnr

PAIRS = (  # (integer, float) of one block and scale
    ("mxint8", "mxfp8"),
    ("mxint6", "mxfp6"),
    ("mxint4", "mxfp4"),
    ("nvint4", "nvfp4"),
)
SEARCHED = {"mxint4": "mse", "mxfp4": "mse", "nvint4": "sweep", "nvfp4": "sweep"}
CREST_BLOCKS = (16, 32, 0)  # 0: a whole row
CREST_ROTATION = 32
ROWS = 128
SEED = 0  # of the signs
WEIGHT, INPUT = "weight", "input"


@dataclass(frozen=True)
class Tensor:
    """rows (R, K) of a weight, or of what the layers of a group read."""

    name: str
    kind: str
    rows: Array


def tensors(path: Path, learned: Mapping[str, Any], exclude: tuple[str, ...]) -> Iterator[Tensor]:
    """Of every linear whose K is whole blocks of 32; `learned` as in `methods_data.Subject`."""
    model = run(OBSERVE, import_model(path, {}))
    data, limit = learned["calibration_data"], learned.get("calibration_samples")
    samples = read_samples(data, model.inputs, model.dims, limit)
    simulator = Simulator(model)
    with TemporaryDirectory() as folder:
        state = State.open(Path(folder) / "state", {})
        statistics = collect(simulator, samples, state, with_hessian=False)
    for group in simulator.groups:
        layers = [layer for layer in group.layers if layer not in exclude]
        if not layers or group.k % CREST_ROTATION:
            continue
        yield Tensor(group.name, INPUT, some(statistics[group.name].sample))
        for layer in layers:
            yield Tensor(layer, WEIGHT, some(simulator.weight(layer)))


def some(rows: Array) -> Array:
    """Up to ROWS of them, evenly apart."""
    return rows[:: -(-len(rows) // ROWS)]


def figures(tensor: Tensor) -> dict[str, Any]:
    """{"crest": {block: [as it is, rotated]}, "qsnr": {format: [as it is, rotated]}, and with the
    scales searched "searched": the same}, the QSNR of zeros left out."""
    turned = Rotation(CREST_ROTATION, SEED).apply(tensor.rows)
    found: dict[str, Any] = {
        "name": tensor.name,
        "kind": tensor.kind,
        "crest": {
            str(block): [crest_factor(tensor.rows, block), crest_factor(turned, block)]
            for block in CREST_BLOCKS
        },
    }
    names = [name for pair in PAIRS for name in pair]
    found["qsnr"] = {name: both(tensor, name, None) for name in names}
    found["searched"] = {name: both(tensor, name, rule) for name, rule in SEARCHED.items()}
    return found


def both(tensor: Tensor, name: str, rule: str | None) -> list[float]:
    """QSNR in a format as the tensor is, and rotated by the format's block."""
    fmt = format_named(name)
    turned = Rotation(fmt.block, SEED).apply(tensor.rows)
    per_row = tensor.kind == INPUT
    return [qsnr(rows, fmt.rounded(rows, rule, per_row=per_row)) for rows in (tensor.rows, turned)]


def crest_factor(rows: Array, block: int) -> float:
    """Mean over the blocks that are not zero of max|x| / rms(x)."""
    blocks = rows.reshape(-1, block or rows.shape[-1]).astype(np.float64)
    rms = np.sqrt(np.square(blocks).mean(axis=-1))
    return float((np.abs(blocks).max(axis=-1)[rms > 0] / rms[rms > 0]).mean())
