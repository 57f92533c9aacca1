"""A linear by itself, ready to be timed: packed weights, quantization and GEMM."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import tvm

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.configs import Tuned
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.hadamard import hadamard_kernel
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cpu.layout import Array
from lbcompiler.targets.cpu.objects import tir_pipeline
from lbcompiler.targets.cpu.sources import PrologueRows

MOST_COPIES = 1024


@dataclass(frozen=True)
class TimedLinear:
    """`run` is the whole linear, `quantize` its first half, a rotation included (None: the GEMM
    takes x as it is).

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
    weight: BlockFormat | None,
    act: BlockFormat | None,
    isa: Isa,
    shape: tuple[int, int, int],
    cold: int,
    tuned: Tuned,
    rule: str = "",
    rotation: Rotation | None = None,
) -> TimedLinear:
    """The linear of shape (M, K, N) on random data, with the config that `compile` would choose.
    rule: by which activations are quantized, "" for their format's default; rotation: of x, before.

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
    prepare = _prepare(kernel, act, k, rule, rotation)
    module = _compiled(kernel, prepare, k, n, chosen.config)
    x = tvm.runtime.tensor(rng.standard_normal((m, k), np.float32))
    y = tvm.runtime.tensor(np.zeros((m, n), np.float32))
    operands, quantize = [x], None
    if prepare is not None:
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


def _weights(
    weight: BlockFormat | None, n: int, k: int, rng: np.random.Generator
) -> Quantized | Array:
    """Some random rows over and over: quantizing takes numpy longer than all that is timed."""
    drawn = rng.standard_normal((min(n, 64), k), np.float32)
    if weight is None:
        return np.resize(drawn, (n, k))
    rows = weight.quantize(drawn)
    codes, scales = (np.resize(array, (n, array.shape[1])) for array in (rows.codes, rows.scales))
    return Quantized(codes, scales, rows.tensor_scale)


def ceiling_of(kernel: LinearKernel, m: int) -> str:
    """The bound of `ceilings.py` that a kernel's arithmetic has for m rows."""
    if kernel.takes_tiles(m):
        return "tiles"
    if kernel.is_integer:
        return "dot"
    return "bf16" if kernel.takes_pairs else "fma"


def _prepare(
    kernel: LinearKernel, act: BlockFormat | None, k: int, rule: str, rotation: Rotation | None
) -> Any:
    """The function that makes the GEMM's operands of x; None where it takes x itself."""
    if act is None:
        return None if rotation is None else hadamard_kernel(rotation, k)
    source = None if rotation is None else PrologueRows(Prologue(rotation=rotation))
    return kernel.quantize(k, rule or act.default_rule, source)


def _compiled(kernel: LinearKernel, prepare: Any, k: int, n: int, config: Config) -> Any:
    functions = {"gemm": kernel.gemm(n, k, bias=False, config=config)}
    if prepare is not None:
        functions["quantize"] = prepare
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    module = tvm.IRModule(named)
    return tvm.compile(module, target=kernel.isa.tvm_target(), tir_pipeline=tir_pipeline())
