"""Linears of other libraries on a GPU, of the same shape, to be timed beside ours.

| peer | weights | activations |
|---|---|---|
| `cublas_bf16` | bfloat16 | bfloat16 |
| `torch_fp8` | E4M3, one scale a tensor (`torch._scaled_mm`) | E4M3, one scale, quantized before |

Neither reads float32 rows, as ours does: no conversion is in their time.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import tvm

from lbcompiler.bench.cublas import Cublas
from lbcompiler.errors import ConfigError, LbcError, reason_of
from lbcompiler.ir.model import Array
from lbcompiler.targets.configs import Shape
from lbcompiler.targets.cuda.bench import copies_of, uploaded, visit
from lbcompiler.targets.cuda.clock import Clock, Recorded

RANDOM = 1 << 20  # numbers that are drawn; larger operands repeat them

Peers = tuple[dict[str, Recorded], dict[str, str]]


def check_peers(names: Sequence[str]) -> None:
    """Raises ConfigError for a peer that is unknown or not installed."""
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"unknown peer {name!r} of target cuda: choose of {', '.join(PEERS)}")
        if name == "torch" and find_spec(name) is None:
            raise ConfigError("the peer torch is not installed: leave it out of --peers")


def peers(names: Sequence[str], shape: Shape, cold: int, clock: Clock) -> Peers:
    """(what was recorded, the reasons of those that could not be). `cold` is as in
    `targets.cuda.bench`.
    """
    found: dict[str, Recorded] = {}
    missing: dict[str, str] = {}
    for name in names:
        variant, make = PEERS[name]
        try:
            found[variant] = make(shape, cold, clock)
        except LbcError as error:
            missing[variant] = str(error)
        except Exception as error:
            missing[variant] = reason_of(error)
    return found, missing


def cublas_bf16(shape: Shape, cold: int, clock: Clock) -> Recorded:
    """Raises ConfigError where there is no cuBLAS."""
    m, k, n = shape
    cublas, rng = Cublas(clock), np.random.default_rng(0)
    x, y = uploaded(_bfloat16(rng, m, k)), tvm.runtime.empty((m, n), "uint16", clock.device)
    count = copies_of(2 * n * k, cold)
    weights = [uploaded(_bfloat16(rng, n, k)) for _ in range(count)]
    turns = cycle(weights)
    return visit(clock, lambda: cublas.multiply(x, next(turns), y), count)


def torch_fp8(shape: Shape, cold: int, clock: Clock) -> Recorded:
    """Raises whatever torch does where its build, the GPU or the shape does not allow it."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"torch {torch.__version__} sees no GPU")
    m, k, n = shape
    stream = torch.cuda.ExternalStream(clock.stream.value)
    with torch.cuda.stream(stream):

        def codes(rows: int) -> Any:
            held = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            return held.to(torch.float8_e4m3fn)

        count = copies_of(n * k, cold)
        x, weights = codes(m), cycle([codes(n) for _ in range(count)])
        scale = torch.ones((), device="cuda")
        y = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()

    def call() -> None:
        with torch.cuda.stream(stream):
            torch._scaled_mm(
                x,
                next(weights).t(),
                scale,
                scale,
                out_dtype=y.dtype,
                use_fast_accum=True,
                out=y,
            )

    return visit(clock, call, count)


def _bfloat16(rng: np.random.Generator, *shape: int) -> Array:
    drawn = rng.standard_normal(min(RANDOM, shape[0] * shape[1]), np.float32)
    held: Array = np.resize(drawn.astype(ml_dtypes.bfloat16).view(np.uint16), shape)
    return held


Make = Callable[[Shape, int, Clock], Recorded]
PEERS: dict[str, tuple[str, Make]] = {
    "cublas": ("cublas_bf16", cublas_bf16),
    "torch": ("torch_fp8", torch_fp8),
}
