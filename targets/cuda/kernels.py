"""The table of CUDA's linears: for a pair of formats and an architecture, the kernel and the
operands it takes.

`kernel_for` is the one way in. What a kernel's functions take, in order:

    quantize(k, rule)   x -> activation operands
    gemm(n, k, ...)     activation operands, packed weights[, bias] -> y

sm_120a multiplies some pairs of formats as they are; anything else, and any other architecture,
takes the exact route. A kernel's `route` says which.
"""

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.layout_native import pair_of
from lbcompiler.targets.cuda.linear_kernel import Config, LinearKernel, Spec
from lbcompiler.targets.cuda.native_kernel import NativeKernel

NATIVE = ("sm_120a",)  # architectures with a block-scaled mma.sync


def kernel_for(
    weight_format: BlockFormat, act_format: BlockFormat | None, arch: Arch
) -> LinearKernel:
    """The kernel of a linear; there is one for every pair of formats."""
    is_native = arch.name in NATIVE and pair_of(weight_format, act_format) is not None
    kind = NativeKernel if is_native else LinearKernel
    return kind(weight_format, act_format, arch)


__all__ = ["Config", "LinearKernel", "Spec", "kernel_for"]
