"""What the CPU kernels must compute, in numpy and bit for bit: FMA emulated exactly, blocks in
ascending order.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm_ffi import StructuralKey

from lbcompiler.formats import BlockFormat, Quantized, decode_scales
from lbcompiler.targets.cpu import plain
from lbcompiler.targets.cpu.float_activations import pair_count, pair_stride
from lbcompiler.targets.cpu.isa import AVX512_AMX, AVX512_BF16, ISAS, Isa, detect
from lbcompiler.targets.cpu.kernels import LinearKernel
from lbcompiler.targets.cpu.layout import padded, row_stride
from lbcompiler.targets.cpu.objects import tir_pipeline

Array = NDArray[Any]
HERE = [isa for isa in ISAS if isa.runs_on(detect())]
# What AVX512_BF16 adds to AVX512_VNNI are products of float formats, what AVX512_AMX adds to both
# those of many rows: all other code is generated from the same PrimFuncs for all three.
OF_INTEGERS = [isa for isa in HERE if isa is not AVX512_BF16]
WITHOUT_PRODUCTS = [isa for isa in OF_INTEGERS if isa is not AVX512_AMX]


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there: where it is inexact (TwoSum
    tells) the last bit is set, so that the second rounding, to float32, sees on which side of a tie
    the true sum lies.
    """
    with np.errstate(all="ignore"):
        product, addend = a.astype(np.float64) * b, np.asarray(c, np.float64)
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        towards = np.where((error > 0) == (total > 0), 1, -1)
        is_even_and_inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
        odd = np.where(is_even_and_inexact, bits + towards, bits).view(np.float64)
        return odd.astype(np.float32)


def integers(q: Quantized, fmt: BlockFormat, k: int) -> Array:
    """Codes as int64 multiples of the element's step, padded with zeros to k."""
    values = fmt.element.decode(q.codes) * np.float32(fmt.element.integer_multiplier or 1)
    return np.pad(values, ((0, 0), (0, k - values.shape[1]))).astype(np.int64)


def exact_values(q: Quantized, fmt: BlockFormat) -> Array:
    """code * scale, without the tensor scale."""
    return fmt.dequantize(Quantized(q.codes, q.scales))


def integer_sums(x: Quantized, act: BlockFormat, w: Quantized, weight: BlockFormat) -> Array:
    """acc = fma(block dot product, weight scale * activation scale, acc), blocks ascending."""
    k, block = x.codes.shape[1], min(act.block, weight.block)
    kp = padded(k, block)
    xi, wi = integers(x, act, kp), integers(w, weight, kp)
    multipliers = (act.element.integer_multiplier or 1) * (weight.element.integer_multiplier or 1)
    with np.errstate(all="ignore"):
        x_scales = decode_scales(x.scales, act.scale) * np.float32(1 / multipliers)
        w_scales = decode_scales(w.scales, weight.scale)
        total = np.zeros((len(xi), len(wi)), np.float32)
        for start in range(0, kp, block):
            part = slice(start, start + block)
            dot = (xi[:, part] @ wi[:, part].T).astype(np.float32)
            scale = np.outer(x_scales[:, start // act.block], w_scales[:, start // weight.block])
            total = fma(dot, scale, total)
    return total


def float_sums(x: Array, w: Array) -> Array:
    """acc = fma(x, w, acc), k ascending."""
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        total = fma(np.repeat(x[:, k : k + 1], len(w), 1), w[:, k][None], total)
    return total


def tile_sums(x: Array, w: Array) -> Array:
    """acc += even + odd, those of 32 k's each a chain of FMAs from 0, k ascending."""
    total = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, x.shape[1], 32):
        even, odd = (
            float_sums(x[:, i : start + 32 : 2], w[:, i : start + 32 : 2])
            for i in (start, start + 1)
        )
        with np.errstate(all="ignore"):
            total = total + (even + odd)
    return total


def linear(
    kernel: LinearKernel, x: Array, w: Quantized | Array, rule: str = "", bias: Array | None = None
) -> Array:
    """x f32 (M, K), w (N, K) quantized (or f32) -> y f32 (M, N) before the activation."""
    if kernel.act is None:
        return linear_of(kernel, x, w, bias)
    return linear_of(kernel, kernel.act.quantize(x, rule or None, per_row=True), w, bias)


def linear_of(
    kernel: LinearKernel, x: Quantized | Array, w: Quantized | Array, bias: Array | None = None
) -> Array:
    """The same of activations that are quantized already."""
    if kernel.is_integer:
        total = integer_sums(x, kernel.act, w, kernel.weight)
    else:
        xv = exact_values(x, kernel.act) if isinstance(x, Quantized) else x
        wv = exact_values(w, kernel.weight) if isinstance(w, Quantized) else w
        total = tile_sums(xv, wv) if kernel.takes_tiles(len(xv)) else float_sums(xv, wv)
    scale: Array | None = x.tensor_scale if isinstance(x, Quantized) else None
    if isinstance(w, Quantized) and w.tensor_scale is not None:
        g = np.asarray(w.tensor_scale, np.float32).reshape(1, 1)
        scale = g if scale is None else scale * g
    return affine(total, scale, bias)


def affine(total: Array, scale: Array | None, bias: Array | None) -> Array:
    """total * scale + bias, one rounding."""
    with np.errstate(all="ignore"):
        if scale is None:
            return total if bias is None else total + bias
        spread = np.broadcast_to(scale, total.shape)
        return total * spread if bias is None else fma(total, spread, bias[None])


def compiled(isa: Isa, **functions: Any) -> dict[str, Any]:
    """The functions by name, equal ones compiled once."""
    named = {name: StructuralKey(func) for name, func in functions.items() if func is not None}
    first = {func: name for name, func in reversed(named.items())}
    module = built(isa, **{name: func.key for func, name in first.items()})
    return {name: module[first[func]] for name, func in named.items()}


def built(isa: Isa, **functions: Any) -> Any:
    """A module of them."""
    named = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    return _built(isa, StructuralKey(tvm.IRModule(named)))


@lru_cache(maxsize=8)  # tests of one kernel follow one another
def _built(isa: Isa, module: StructuralKey) -> Any:
    return tvm.compile(module.key, target=isa.tvm_target(), tir_pipeline=tir_pipeline())


def call(function: Any, inputs: list[Array], *outputs: tuple[tuple[int, ...], str]) -> list[Array]:
    """The outputs of a compiled PrimFunc, which start as garbage."""
    held = [tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in outputs]
    function(*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs], *held)
    return [tensor.numpy() for tensor in held]


def run(
    kernel: LinearKernel, module: Any, x: Array, w: Quantized | Array, bias: Array | None = None
) -> Array:
    """quantize and gemm of a module, one after the other: y f32 (M, N)."""
    operands = [x]
    if kernel.act is not None:
        specs = [((len(x), *shape), dtype) for shape, dtype in kernel.quantized_specs(x.shape[1])]
        operands = call(module["quantize"], [x], *specs)
    return multiply(kernel, module["gemm"], operands, w, bias)


def multiply(
    kernel: LinearKernel,
    gemm: Any,
    operands: list[Array],
    w: Quantized | Array,
    bias: Array | None = None,
) -> Array:
    """A compiled gemm of activation operands and a weight that is not packed yet: y f32 (M, N)."""
    n = len(w.codes if isinstance(w, Quantized) else w)
    inputs = [*operands, *kernel.pack(w), *([] if bias is None else [bias])]
    return call(gemm, inputs, ((len(operands[0]), n), "float32"))[0]


def integer_operands(kernel: LinearKernel, q: Quantized, x: Array | None = None) -> list[Array]:
    """What `kernel.quantize` makes, from activations (x, or just the codes of) that are quantized.

    Bytes between rows are garbage. A block of zeros has scale 1 where scales are powers of two.
    """
    act, weight, block = kernel.act, kernel.weight, kernel.block
    values = integers(q, act, padded(q.codes.shape[1], block))
    multipliers = (act.element.integer_multiplier or 1) * (weight.element.integer_multiplier or 1)
    starts = -kernel.zero_point * values.reshape(len(values), -1, block).sum(-1)
    scales = decode_scales(q.scales, act.scale)
    if act.scale == "e8m0":
        source = q.codes if x is None else x
        whole = np.pad(source, ((0, 0), (0, -source.shape[1] % act.block)))
        is_zero = ~whole.reshape(len(whole), -1, act.block).any(-1)
        scales = np.where(is_zero & np.isfinite(scales), np.float32(1), scales)
    scales = scales * np.float32(1 / multipliers)
    apart = np.full((len(values), row_stride(values.shape[1])), 77, np.int8)
    apart[:, : values.shape[1]] = values
    flags = []
    if act.scale == "e8m0" and (weight.scale == "e8m0" or kernel.isa.has_tiles):
        with np.errstate(all="ignore"):
            is_plain = (scales <= 2.0**plain.ADDED) & (scales >= 2.0**-plain.ADDED)
        flags.append((~is_plain.all(-1, keepdims=True)).astype(np.int32))
    rows = [] if q.tensor_scale is None else [q.tensor_scale]
    return [apart, scales, starts.astype(np.int32), *flags, *rows]


def pair_operands(kernel: LinearKernel, q: Quantized) -> list[Array]:
    """What `kernel.quantize` makes for a GEMM of bfloat16 pairs; garbage between the rows."""
    act, k = kernel.act, q.codes.shape[1]
    values, scales = act.element.decode(q.codes), decode_scales(q.scales, act.scale)
    of_k = np.arange(k) // act.block
    extra: list[Array] = []
    if act.scale == "e8m0":
        is_plain = (scales <= 2.0**plain.BFLOAT16) & (scales >= 2.0**-plain.BFLOAT16)
        kept = np.where(is_plain, np.float32(1), scales)
        extra = [kept, (~is_plain.all(-1, keepdims=True)).astype(np.int32)]
        scales = np.where(is_plain, scales, np.float32(1))
    x = np.pad(values * scales[:, of_k], ((0, 0), (0, k % 2))).view(np.int32)
    pairs = np.full((len(x), pair_stride(k)), 77, np.int32)
    pairs[:, : pair_count(k)] = x[:, ::2] | x[:, 1::2] >> 16 & 0xFFFF
    return [pairs, *extra, *([] if q.tensor_scale is None else [q.tensor_scale])]


def any_weight(fmt: BlockFormat, n: int, k: int, seed: int) -> Quantized:
    """Any codes (those of NaN and Inf in the last columns) under any scale bytes.

    The scales of half of the columns are near one, so that results differ by more than the largest
    term.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << fmt.element.bits, (n, k)).astype(np.uint8)
    codes[: n - 4] = np.where(np.isfinite(fmt.element.decode(codes)), codes, 1)[: n - 4]
    scales = rng.permutation(np.resize(np.arange(256), n * fmt.blocks(k))).reshape(n, -1)
    one = 127 if fmt.scale == "e8m0" else 56
    scales[: n // 2] = rng.integers(one - 9, one + 10, scales.shape)[: n // 2]
    g = np.asarray(0.37, np.float32) if fmt.has_tensor_scale else None
    return Quantized(codes, scales.astype(np.uint8), g)
