"""What plain rounding leaves of a tensor: its QSNR in every format, as it is and rotated.

QSNR = 10 log10(sum x^2 / sum (x - xq)^2), in dB, with each format's default scale rule. A rotation
is a block Hadamard of the format's own block unless a size is given (arXiv 2510.25602). Large
tensors are looked at in rows spread evenly: 65,536 values are 2,048 blocks and more."""

import numpy as np

from lbcompiler.calibration.statistics import InputStatistics
from lbcompiler.formats import FORMATS, BlockFormat
from lbcompiler.ir.model import Array
from lbcompiler.ir.rotation import Rotation
from lbcompiler.metrics import Similarity
from lbcompiler.report.analysis import TensorFigures

VALUES = 1 << 16  # of a tensor that are looked at


def figures(x: Array, size: int | None, seed: int | None, per_row: bool) -> TensorFigures:
    """Of x (R, K) float32. `size` of the rotations, None for each format's block; `per_row`: a
    tensor scale for each row, as activations have.
    """
    rows = spread(x, max(1, VALUES // max(1, x.shape[1])))
    shape = InputStatistics.empty(x.shape[1])
    shape.add(rows, None, 0, np.random.default_rng(0))
    plain: dict[str, float | None] = {}
    rotated: dict[str, float | None] = {}
    for name, fmt in FORMATS.items():
        plain[name] = _qsnr(rows, fmt, per_row)
        block = size or fmt.block
        rotated[name] = None
        if x.shape[1] % block == 0:
            rotated[name] = _qsnr(Rotation(block, seed).apply(rows), fmt, per_row)
    return TensorFigures(
        _known(shape.crest_factor(16)),
        _known(shape.crest_factor(32)),
        shape.kurtosis,
        plain,
        rotated,
    )


def spread(x: Array, count: int) -> Array:
    """At most `count` rows of x (R, K), evenly apart, the first among them."""
    return x[:: max(1, -(-len(x) // count))]


def _qsnr(rows: Array, fmt: BlockFormat, per_row: bool) -> float | None:
    similarity = Similarity()
    similarity.add(fmt.rounded(rows, per_row=per_row), rows)
    return similarity.qsnr_db if similarity.signal else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
