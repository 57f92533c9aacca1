"""A linear by itself, ready to be timed: packed weights, quantization and GEMM."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import tvm

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.targets.configs import Tuned
from lbcompiler.targets.cpu.build import tir_pipeline
from lbcompiler.targets.cpu.gemm import SMALL_M, Config
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for

MOST_COPIES = 1024


@dataclass(frozen=True)
class TimedLinear:
    """`run` is the whole linear, `quantize` its first half (None: activations stay in float).

    `ceiling` names the bound of `ceilings.py` that its arithmetic has, `weight_bytes` what one run
    reads of packed weights; as many `copies` of them take turns. `config_source` names the tables
    that the GEMM's config is from.
    """

    name: str
    run: Callable[[], Any]
    quantize: Callable[[], Any] | None
    weight_bytes: int
    copies: int
    ceiling: str
    config_source: str


def timed_linear(
    weight: BlockFormat,
    act: BlockFormat | None,
    isa: Isa,
    shape: tuple[int, int, int],
    cold: int,
    tuned: Tuned,
) -> TimedLinear:
    """The linear of shape (M, K, N) on random data, with the config that `compile` would choose.

    With `cold` above 0 every run takes the next of as many copies of the weights as make that many
    bytes: more than the caches hold, and none finds its weights there (see `copies_of`).
    """
    m, k, n = shape
    kernel = kernel_for(weight, act, isa)
    rng = np.random.default_rng(0)
    packed = kernel.pack(_weights(weight, n, k, rng))
    nbytes = sum(array.nbytes for array in packed)
    count = copies_of(nbytes, cold)
    copies = cycle(
        [[tvm.runtime.tensor(np.roll(array, i, 0)) for array in packed] for i in range(count)]
    )
    chosen = tuned.choose(kernel, n, k)
    module = _compiled(kernel, act, k, n, chosen.config)
    x = tvm.runtime.tensor(rng.standard_normal((m, k), np.float32))
    y = tvm.runtime.tensor(np.zeros((m, n), np.float32))
    operands, quantize = [x], None
    if act is not None:
        operands = [
            tvm.runtime.tensor(np.zeros((m, *tail), dtype))
            for tail, dtype in kernel.quantized_specs(k)
        ]
        first = module["quantize"]

        def quantize() -> None:
            first(x, *operands)

    gemm = module["gemm"]

    def run() -> None:
        if quantize is not None:
            quantize()
        gemm(*operands, *next(copies), y)

    ceiling = ceiling_of(kernel, m)
    return TimedLinear(kernel.name, run, quantize, nbytes, count, ceiling, chosen.source)


def copies_of(nbytes: int, cold: int) -> int:
    """How many weights of `nbytes` make `cold` bytes, at most MOST_COPIES: small ones stay warm."""
    return max(1, min(MOST_COPIES, -(-cold // nbytes)))


def _weights(weight: BlockFormat, n: int, k: int, rng: np.random.Generator) -> Quantized:
    """Some random rows over and over: quantizing takes numpy longer than all that is timed."""
    rows = weight.quantize(rng.standard_normal((min(n, 64), k), np.float32))
    codes, scales = (np.resize(array, (n, array.shape[1])) for array in (rows.codes, rows.scales))
    return Quantized(codes, scales, rows.tensor_scale)


def ceiling_of(kernel: LinearKernel, m: int) -> str:
    """The bound of `ceilings.py` that a kernel's arithmetic has for m rows."""
    if kernel.is_integer:
        return "tiles" if kernel.isa.has_tiles and m >= SMALL_M else "dot"
    return "bf16" if kernel.takes_pairs else "fma"


def _compiled(kernel: LinearKernel, act: BlockFormat | None, k: int, n: int, config: Config) -> Any:
    functions = {"gemm": kernel.gemm(n, k, bias=False, config=config)}
    if act is not None:
        functions["quantize"] = kernel.quantize(k, act.default_rule)
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    module = tvm.IRModule(named)
    return tvm.compile(module, target=kernel.isa.tvm_target(), tir_pipeline=tir_pipeline())
