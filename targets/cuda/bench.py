"""A linear by itself on a GPU, recorded to be timed: weights, quantization and GEMM."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any

import numpy as np
import tvm

from lbcompiler.formats import BlockFormat
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.configs import Shape, Tuned
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.clock import Clock, Recorded
from lbcompiler.targets.cuda.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cuda.layout import Array
from lbcompiler.targets.cuda.library import Library, MakeLibrary

FEW_ROWS = 16  # up to here a linear reads its weights for little arithmetic
MOST_COPIES = 256  # of one weight that take turns
VISIT_S = 0.004  # of one launch of what was recorded: what lies around it is a thousandth of that
MOST_CALLS = 1024  # of one graph
SAMPLE_ROWS = 256  # of a weight that is quantized; the rest repeats them
WHOLE = 6  # every format holds it, and has one scale for blocks whose largest number it is


@dataclass(frozen=True)
class Linear:
    """A kernel at a shape, its `gemm` and `quantize` loaded."""

    kernel: LinearKernel
    m: int
    k: int
    n: int
    module: Any
    clock: Clock


@dataclass(frozen=True)
class TimedLinear:
    """`whole` is quantization and GEMM. `weight_bytes`: what one call reads of packed weights, of
    which `copies` take turns. `config_source` names the tables that the GEMM's config is from.
    """

    name: str
    whole: Recorded
    quantize: Recorded
    gemm: Recorded
    weight_bytes: int
    copies: int
    config_source: str


def timed_linear(
    weight: BlockFormat,
    act: BlockFormat | None,
    arch: Arch,
    shape: Shape,
    cold: int,
    tuned: Tuned,
    clock: Clock,
    library: MakeLibrary = Library.of,
) -> TimedLinear:
    """The linear of shape (M, K, N) on random data, with the config that `compile` would choose.

    With `cold` above 0 every call takes the next of as many copies of the weights as make that many
    bytes: more than the L2 cache holds.
    """
    m, k, n = shape
    kernel, rng = kernel_for(weight, act, arch), np.random.default_rng(0)
    chosen = tuned.choose(kernel, n, k)
    module = library(functions_of(kernel, n, k, chosen.config), arch).load()
    linear = Linear(kernel, m, k, n, module, clock)
    x = uploaded(rng.standard_normal((m, k), np.float32))
    operands, packed = quantized_rows(linear, x), packed_weights(linear, rng)
    size = sum(map(bytes_of, packed))
    several = copies_for(packed, cold)
    count, turns = len(several), cycle(several)
    results = results_for(kernel, m, n, chosen.config)
    first, second = linear.module["quantize"], linear.module["gemm"]

    def whole() -> None:
        first(x, *operands)
        second(*operands, *next(turns), *results)

    return TimedLinear(
        name=kernel.name,
        whole=visit(clock, whole, count),
        quantize=visit(clock, lambda: first(x, *operands)),
        gemm=visit(clock, lambda: second(*operands, *next(turns), *results), count),
        weight_bytes=size,
        copies=count,
        config_source=chosen.source,
    )


def timed_quantize(
    fmt: BlockFormat,
    arch: Arch,
    shape: tuple[int, int],
    rotation: Rotation | None,
    clock: Clock,
    library: MakeLibrary = Library.of,
) -> tuple[Recorded, int]:
    """(the quantization of x (M, K), rotated first if asked, recorded; bytes it reads and writes
    at least). Copies of x and of the results take turns, so that none is in the L2 cache.
    """
    m, k = shape
    kernel = kernel_for(fmt, fmt, arch)
    module = library(rotated_function(kernel, k, rotation), arch).load()
    x = uploaded(np.random.default_rng(0).standard_normal((m, k), np.float32))
    operands = [tvm.runtime.empty(s, d, clock.device) for s, d in kernel.quantized_shapes(m, k)]
    held = [x, *operands]
    several = copies_for(held, clock.cold_bytes)
    turns, function = cycle(several), module["q"]
    recorded = visit(clock, lambda: function(*next(turns)), len(several))
    return recorded, sum(map(bytes_of, held))


def functions_of(kernel: LinearKernel, n: int, k: int, config: Any) -> dict[str, Any]:
    """The PrimFuncs `gemm` and `quantize` of a linear."""
    return {
        "gemm": kernel.gemm(n, k, bias=False, config=config),
        "quantize": kernel.quantize(k, rule_of(kernel)),
    }


def rotated_function(kernel: LinearKernel, k: int, rotation: Rotation | None) -> dict[str, Any]:
    """The PrimFunc `q` that is timed."""
    return {"q": rotated_quantize(kernel, k, rotation)}


def rotated_quantize(kernel: LinearKernel, k: int, rotation: Rotation | None) -> Any:
    """The PrimFunc that rotates rows and quantizes them."""
    return kernel.quantize(k, rule_of(kernel), Prologue(rotation=rotation))


def rule_of(kernel: LinearKernel) -> str:
    """The scale rule of activations that `compile` takes."""
    return "none" if kernel.act is None else kernel.act.default_rule


def visit(clock: Clock, call: Callable[[], Any], copies: int = 1) -> Recorded:
    """As many calls as a visit takes, a multiple of `copies`."""
    once = clock.seconds(clock.record(call, copies))
    turns = min(ceil(VISIT_S / max(once * copies, 1e-7)), MOST_CALLS // copies)
    return clock.record(call, max(1, turns) * copies)


def copies_of(nbytes: int, cold: int) -> int:
    """How many of `nbytes` make `cold` bytes, at most MOST_COPIES: small ones stay warm."""
    return max(1, min(MOST_COPIES, -(-cold // nbytes)))


def quantized_rows(linear: Linear, x: Any) -> list[Any]:
    """The GEMM's operands made of rows (M, K), which are an array or on the GPU."""
    held = x if isinstance(x, tvm.runtime.Tensor) else uploaded(x)
    shapes = linear.kernel.quantized_shapes(linear.m, linear.k)
    operands = [tvm.runtime.empty(s, d, linear.clock.device) for s, d in shapes]
    linear.clock.run(lambda: linear.module["quantize"](held, *operands))
    return operands


def packed_weights(linear: Linear, rng: np.random.Generator | None) -> list[Any]:
    """Weights (N, K) of random numbers, or of whole ones as `exact_rows`; SAMPLE_ROWS of them over
    and over: quantizing takes numpy longer than all that is timed.
    """
    kernel, rows = linear.kernel, min(linear.n, SAMPLE_ROWS)
    if rng is None:
        sample = exact_rows(rows, linear.k)
    else:
        sample = rng.standard_normal((rows, linear.k), np.float32)
    parts = kernel.pack(kernel.weight.quantize(sample))
    specs = kernel.packed_specs(linear.n, linear.k)
    pairs = zip(parts, specs, strict=True)
    return [uploaded(np.resize(part, shape)) for part, (shape, _) in pairs]


def exact_rows(m: int, k: int) -> Array:
    """Whole numbers (M, K) float32, the largest in every block: products of two such rows have one
    scale, and float32 adds them up exactly in any order.
    """
    x = np.random.default_rng(1).integers(-WHOLE, WHOLE + 1, (m, k)).astype(np.float32)
    x[:, ::16] = WHOLE  # the smallest block of any format
    return x


def results_for(kernel: LinearKernel, m: int, n: int, config: Any) -> list[Any]:
    """What the GEMM writes: y, then what it needs beside it."""
    shapes = [((m, n), "float32"), *kernel.scratch(n, config)]
    return [tvm.runtime.empty(shape, dtype, tvm.cuda(0)) for shape, dtype in shapes]


def uploaded(array: Array) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cuda(0))


def copies_for(tensors: list[Any], cold: int) -> list[list[Any]]:
    """The tensors and as many copies of them as make `cold` bytes."""
    count = copies_of(sum(map(bytes_of, tensors)), cold)
    return [tensors, *(_copied(tensors) for _ in range(count - 1))]


def _copied(tensors: list[Any]) -> list[Any]:
    """The same again, elsewhere."""
    copies = [tvm.runtime.empty(tuple(t.shape), str(t.dtype), tvm.cuda(0)) for t in tensors]
    for tensor, copy in zip(tensors, copies, strict=True):
        tensor.copyto(copy)
    return copies


def bytes_of(tensor: Any) -> int:
    return int(tensor.numel() * tensor.dtype.itemsize)
