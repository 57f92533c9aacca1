"""The table of CUDA's linears: for a pair of formats and an architecture, the kernel and the
operands it takes.

`kernel_for` is the one way in. What a kernel's functions take, in order:

    quantize(k, rule)   x -> activation operands
    gemm(n, k, ...)     activation operands, packed weights[, bias] -> y

sm_120a and sm_100a+tcgen05 multiply some pairs of formats as they are; anything else, and any other
architecture, takes the exact route. A kernel's `route` says which.
"""

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda import layout_native, layout_tcgen05
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.linear_kernel import Config, LinearKernel, Spec
from lbcompiler.targets.cuda.native_kernel import NativeKernel
from lbcompiler.targets.cuda.tcgen05_kernel import Tcgen05Kernel

NATIVE = {  # architectures with block-scaled instructions: the kernel, and the pairs it has
    "sm_120a": (NativeKernel, layout_native.pair_of),
    "sm_100a+tcgen05": (Tcgen05Kernel, layout_tcgen05.pair_of),
}


def kernel_for(
    weight_format: BlockFormat, act_format: BlockFormat | None, arch: Arch
) -> LinearKernel:
    """The kernel of a linear; there is one for every pair of formats."""
    if arch.name in NATIVE:
        kind, pair_of = NATIVE[arch.name]
        if pair_of(weight_format, act_format) is not None:
            return kind(weight_format, act_format, arch)
    return LinearKernel(weight_format, act_format, arch)


__all__ = ["Config", "LinearKernel", "Spec", "kernel_for"]
