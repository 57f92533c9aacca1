"""Every linear's kernel on a GPU: block-scaled weights or float ones."""

from typing import Any

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.linear_float import FloatLinear


def linear_for(
    weight_format: BlockFormat | None, act_format: BlockFormat | None, arch: Arch
) -> Any:
    """None means float32. Quantized activations against float weights: ValueError."""
    if weight_format is not None:
        return kernel_for(weight_format, act_format, arch)
    if act_format is not None:
        raise ValueError(f"no kernel has {act_format.name} activations and float weights")
    return FloatLinear(arch)
