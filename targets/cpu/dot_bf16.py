"""Sums of products of bfloat16 pairs: `vdpbf16ps`.

TVM's LLVM back end has no bfloat type, so it cannot name the operands of the intrinsic. A function
of ten lines of LLVM, imported into the kernel's module and inlined there, takes them as int32
instead: two bfloat16 in each.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import Expr

_NAME = "lbc_dot_bf16"
_LLVM = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @{_NAME}(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {{
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %x,
                                                           <32 x bfloat> %y)
  ret <16 x float> %r
}}
"""


@contextmanager
def importing_dot_bf16() -> Iterator[None]:
    """Statements that may call `dot_bf16`."""
    with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", _LLVM):
        yield


def dot_bf16(total: Expr, a: Expr, b: Expr) -> Expr:
    """total + a0 * b0 + a1 * b1 in each of 16 float32 lanes.

    a and b are int32x16 holding bfloat16 pairs. Two FMAs, that of the high halves first (Intel's
    manual has it so, and Zen 5 does it), each rounded to nearest even whatever the thread's
    rounding mode, with denormals taken as zero.
    """
    return tirx.call_extern("float32x16", _NAME, total, a, b)
