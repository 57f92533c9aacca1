"""Quantized weights as the tensors of compressed-tensors and ModelOpt checkpoints, and back.

Both keep codes low nibble first and scales in rows, [N, K / block], never swizzled. They differ in
names, and in NVFP4's tensor scale: ModelOpt multiplies by `weight_scale_2`, compressed-tensors
divides by `weight_global_scale`. Not every float32 is the reciprocal of one: a g that is (so every
g read from such a file) comes back from its divisor exactly, another within 2^-23 of itself.
"""

from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError
from lbcompiler.formats.block_format import BlockFormat, Quantized
from lbcompiler.formats.mxfp4 import MXFP4
from lbcompiler.formats.mxfp6 import MXFP6
from lbcompiler.formats.mxfp8 import MXFP8
from lbcompiler.formats.nvfp4 import NVFP4
from lbcompiler.formats.packing import pack_codes, unpack_codes

Array = NDArray[Any]

COMPRESSED_TENSORS = {  # the `format` of config.json
    NVFP4: "nvfp4-pack-quantized",
    MXFP4: "mxfp4-pack-quantized",
    MXFP6: "mxfp6-pack-quantized",
    MXFP8: "mxfp8-quantized",
}


def to_compressed_tensors(q: Quantized, fmt: BlockFormat) -> dict[str, Array]:
    """(N, K) -> `weight_packed` uint8 and `weight_scale` (E8M0 bytes; NVFP4: float8_e4m3fn).

    NVFP4 adds `weight_global_scale` float32 [1]; MXFP8 has a `weight` float8_e4m3fn, not packed.
    Raises ConfigError for a short last block or a format that compressed-tensors has no name for.
    """
    _refuse_others(fmt, COMPRESSED_TENSORS)
    _refuse_unstorable(q, fmt)
    if fmt == MXFP8:
        return {"weight": q.codes.view(ml_dtypes.float8_e4m3fn), "weight_scale": q.scales}
    packed = {"weight_packed": pack_codes(q.codes, fmt.element.bits), "weight_scale": q.scales}
    if q.tensor_scale is None:
        return packed
    packed["weight_scale"] = q.scales.view(ml_dtypes.float8_e4m3fn)
    return {**packed, "weight_global_scale": np.float32(1) / q.tensor_scale.reshape(1)}


def from_compressed_tensors(tensors: Mapping[str, Array], fmt: BlockFormat) -> Quantized:
    """The inverse of `to_compressed_tensors`. Raises ConfigError where a tensor is missing."""
    _refuse_others(fmt, COMPRESSED_TENSORS)
    if fmt == MXFP8:
        weight, scales = _take(tensors, "weight", "weight_scale")
        return Quantized(weight.view(np.uint8), scales.view(np.uint8))
    packed, scales = _take(tensors, "weight_packed", "weight_scale")
    k = packed.shape[-1] * 8 // fmt.element.bits
    codes = unpack_codes(packed.view(np.uint8), fmt.element.bits, k)
    if not fmt.has_tensor_scale:
        return Quantized(codes, scales.view(np.uint8))
    (divisor,) = _take(tensors, "weight_global_scale")
    if not (np.isfinite(divisor).all() and (np.asarray(divisor) > 0).all()):
        raise ConfigError(f"weight_global_scale divides the scales, so it cannot be {divisor}.")
    g = (np.float32(1) / np.asarray(divisor, np.float32)).reshape(())
    return Quantized(codes, scales.view(np.uint8), g)


def to_modelopt(q: Quantized) -> dict[str, Array]:
    """NVFP4 (N, K) -> `weight` uint8 [N, K/2], `weight_scale` float8_e4m3fn, `weight_scale_2` f32.

    Raises ConfigError for a short last block and for what has no tensor scale, so is not NVFP4.
    """
    _refuse_unstorable(q, NVFP4)
    if q.tensor_scale is None:
        raise ConfigError("ModelOpt's NVFP4 needs a tensor scale; this tensor is of an MX format.")
    return {
        "weight": pack_codes(q.codes, NVFP4.element.bits),
        "weight_scale": q.scales.view(ml_dtypes.float8_e4m3fn),
        "weight_scale_2": q.tensor_scale.reshape(()),
    }


def from_modelopt(tensors: Mapping[str, Array]) -> Quantized:
    """The exact inverse of `to_modelopt`. Raises ConfigError where a tensor is missing."""
    packed, scales, g = _take(tensors, "weight", "weight_scale", "weight_scale_2")
    codes = unpack_codes(packed, NVFP4.element.bits, packed.shape[-1] * 2)
    return Quantized(codes, scales.view(np.uint8), np.asarray(g, np.float32).reshape(()))


def _refuse_others(fmt: BlockFormat, known: Collection[BlockFormat]) -> None:
    if fmt not in known:
        names = ", ".join(other.name for other in known)
        raise ConfigError(f"This checkpoint layout has no {fmt.name}; it has {names}.")


def _refuse_unstorable(q: Quantized, fmt: BlockFormat) -> None:
    if q.codes.ndim != 2 or q.codes.shape[1] % fmt.block:
        raise ConfigError(
            f"A checkpoint stores {fmt.name} weights (N, K) in whole blocks of {fmt.block}, "
            f"not {q.codes.shape}; pad K with zeros."
        )
    if q.tensor_scale is not None and q.tensor_scale.size != 1:
        raise ConfigError(
            f"A checkpoint has one tensor scale for a weight, not {q.tensor_scale.shape}; "
            "quantize with per_row=False."
        )


def _take(tensors: Mapping[str, Array], *names: str) -> list[Array]:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ConfigError(
            f"The checkpoint lacks {', '.join(missing)}; it has {', '.join(tensors) or 'nothing'}."
        )
    return [tensors[name] for name in names]
