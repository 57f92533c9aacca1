"""Where the time of a compiled model goes, kernel by kernel.

A run is watched some times and every call takes the median of its times, so that what a neighbour
disturbed once does not show. Looking costs about a microsecond a call; what Python does between
two kernels is in no kernel's time. On a GPU a kernel's launch is, some microseconds.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from lbcompiler.artifact import LayerRecord
from lbcompiler.bench.targets import BenchTarget, bench_target
from lbcompiler.formats import FORMATS
from lbcompiler.ir.model import Array
from lbcompiler.runtime import KernelCall, Program

RUNS, SECONDS = 15, 5.0  # whichever ends first, after one run to warm up
MACHINE = "vm.builtin."  # how the names of the virtual machine's own functions begin


@dataclass(frozen=True)
class KernelRow:
    """All calls of a kernel on one shape within a run; see docs/json.md.

    `shape` is [M, K, N] of a linear, else the first operand's. The ceiling of a linear is one of
    arithmetic, of all else the memory's. What has no measure is None.
    """

    kernel: str
    shape: list[int]
    calls: int
    ms: float
    share: float
    gops: float | None = None
    ceiling: str | None = None
    ceiling_share: float | None = None
    gb_s: float | None = None


@dataclass(frozen=True)
class _Call:
    kernel: str
    shape: tuple[int, ...]
    operations: int
    bytes: int
    ceiling: str | None


def profile(
    program: Program, feeds: Mapping[str, Array], ceilings: Mapping[str, float]
) -> list[KernelRow]:
    """The kernels of a run, those that took longest first. `ceilings` are in GOP/s by name, the
    memory's in GB/s.
    """
    target = program.manifest.target
    describe = _Describe(target.isa, bench_target(target.name))
    runs: list[list[float]] = []
    calls: list[_Call] = []
    program.watch(feeds, lambda call: calls.append(describe(call)))
    end = time.perf_counter() + SECONDS
    while len(runs) < RUNS and (time.perf_counter() < end or not runs):
        seconds: list[float] = []
        program.watch(feeds, lambda call, seconds=seconds: seconds.append(call.seconds))  # type: ignore[misc]
        runs.append(seconds)
    took: dict[_Call, list[float]] = defaultdict(list)
    for call, *samples in zip(calls, *runs, strict=True):
        took[call].append(statistics.median(samples))
    whole = sum(map(sum, took.values()))
    rows = [_row(call, times, whole, ceilings) for call, times in took.items()]
    return sorted(rows, key=lambda row: -row.ms)


@dataclass(frozen=True)
class _Describe:
    isa: str
    target: BenchTarget

    def __call__(self, call: KernelCall) -> _Call:
        if call.name.startswith(MACHINE) or not call.tensors:
            return _Call(call.name, (), 0, 0, None)
        first, result = (tuple(map(int, call.tensors[i].shape)) for i in (0, -1))
        moved = sum(tensor.numel() * tensor.dtype.itemsize for tensor in call.tensors)
        if call.layer is None:
            return _Call(call.name, first, 0, moved, self.target.MEMORY)
        n, rows = call.layer.shape[0], prod(result[:-1])
        k = prod(call.layer.shape[1:])
        return _Call(
            call.name, (rows, k, n), 2 * rows * k * n, moved, self._ceiling(call.layer, rows)
        )

    def _ceiling(self, layer: LayerRecord, rows: int) -> str:
        formats = (FORMATS.get(layer.weight_format), FORMATS.get(layer.activation_format))
        return self.target.bound_of(*formats, self.isa, rows)


def _row(call: _Call, times: list[float], whole: float, ceilings: Mapping[str, float]) -> KernelRow:
    seconds, count = sum(times), len(times)
    gops, gb_s = (amount * count / seconds * 1e-9 for amount in (call.operations, call.bytes))
    ceiling = ceilings.get(call.ceiling or "")
    return KernelRow(
        kernel=call.kernel,
        shape=list(call.shape),
        calls=count,
        ms=seconds * 1e3,
        share=seconds / whole,
        gops=gops if call.operations else None,
        ceiling=call.ceiling if ceiling else None,
        ceiling_share=(gops if call.operations else gb_s) / ceiling if ceiling else None,
        gb_s=gb_s if call.bytes else None,
    )
