"""Speed of the CPU linears: `python -m tests.bench.gemm [--formats mxint8 ..] [--shapes 1x64x64
..]`.

Prints, for each format (weights and activations) and shape MxKxN, GOP/s of the GEMM counting
2 M K N, the bytes of packed weights per second, and the time of quantizing the activations.
Medians; the best of the GEMM in brackets. Weights are hot in the last-level cache. Nothing is
asserted: neighbours on the machine show. With one thread the thread's own time is taken, which they
disturb less.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle workers would spin beside ours

import numpy as np
import tvm

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.isa import detect, isa_named
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cpu.threads import set_threads
from tests.targets.cpu.reference import compiled


def seconds(run: Callable[[], object], repeats: int, threads: int) -> tuple[float, float]:
    """(median, best) of `repeats` calls after one that is not counted."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    run()
    times = []
    for _ in range(repeats):
        started = clock()
        run()
        times.append(clock() - started)
    return float(np.median(times)), min(times)


def measure(kernel: LinearKernel, m: int, k: int, n: int, repeats: int, threads: int) -> str:
    rng = np.random.default_rng(0)
    act, weight = kernel.act, kernel.weight
    quantize = None if act is None else kernel.quantize(k, act.default_rule)
    module = compiled(kernel.isa, quantize=quantize, gemm=kernel.gemm(n, k, bias=False))
    w = rng.standard_normal((n, k), np.float32)
    packed = kernel.pack(w if weight is None else weight.quantize(w))
    x = tvm.runtime.tensor(rng.standard_normal((m, k), np.float32))
    operands, quantizing = [x], 0.0
    if act is not None:
        specs = kernel.quantized_specs(k)
        operands = [tvm.runtime.tensor(np.zeros((m, *shape), dtype)) for shape, dtype in specs]
        quantizing, _ = seconds(lambda: module["quantize"](x, *operands), repeats, threads)
    y = tvm.runtime.tensor(np.zeros((m, n), np.float32))
    arguments = [*operands, *(tvm.runtime.tensor(a) for a in packed), y]
    median, best = seconds(lambda: module["gemm"](*arguments), repeats, threads)
    operations, nbytes = 2e-9 * m * k * n, 1e-9 * sum(a.nbytes for a in packed)
    return (
        f"{kernel.name:38} {m:4} x {k} x {n}: {operations / median:6.0f} "
        f"({operations / best:6.0f}) GOP/s, {nbytes / median:5.1f} GB/s, "
        f"quantize {quantizing * 1e6:5.0f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", nargs="+", default=["mxint8", "mxfp4", "nvfp4", "mxfp8"])
    parser.add_argument("--act-format", help="another format than the weights', or none")
    shapes = ["1x2048x2048", "128x2048x2048", "512x2048x2048"]
    parser.add_argument("--shapes", nargs="+", default=shapes)
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, help="default: one a physical core")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    isa = isa_named(options.isa) if options.isa else detect()
    threads = set_threads(options.threads)
    for name in options.formats:
        weight = None if name == "float32" else FORMATS[name]
        chosen = options.act_format or name
        act = None if chosen in ("none", "float32") else FORMATS[chosen]
        kernel = kernel_for(weight, act, isa)
        for shape in options.shapes:
            m, k, n = map(int, shape.split("x"))
            print(measure(kernel, m, k, n, options.repeats, threads), flush=True)


if __name__ == "__main__":
    main()
