"""What this GPU's memory reaches: bytes copied within it, read and written both counted."""

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.bench import visit
from lbcompiler.targets.cuda.clock import Clock, Recorded
from lbcompiler.targets.cuda.intrinsics import Device, int64, kernel, launch
from lbcompiler.targets.cuda.library import Library, MakeLibrary

COPY_BYTES = 1 << 30  # many times any L2 cache
THREADS = 256
EACH = 4  # 16-byte loads of a thread before its first store
PIECE = THREADS * EACH * 16  # bytes of a block
_COPY = (
    "__device__ __forceinline__ void lb_copy(const void* x, void* y) {"
    " const uint4* a = reinterpret_cast<const uint4*>(x); uint4* b = reinterpret_cast<uint4*>(y);"
    f" uint4 v[{EACH}];"
    f" for (int i = 0; i < {EACH}; i++) v[i] = a[i * {THREADS}];"
    f" for (int i = 0; i < {EACH}; i++) b[i * {THREADS}] = v[i]; }}"
)


COPY = "copy "


def copies(
    arch: Arch, clock: Clock, library: MakeLibrary = Library.of
) -> tuple[dict[str, Recorded], int]:
    """(ways to copy, the bytes that one moves): a kernel, and the driver's own copy."""
    count, module = _count(), library(copy_function(), arch).load()
    x, y = (tvm.runtime.empty((count * PIECE,), "uint8", clock.device) for _ in range(2))
    ways = {
        COPY + "kernel": visit(clock, lambda: module["copy"](x, y)),
        COPY + "driver": visit(clock, lambda: clock.copy(y, x, count * PIECE)),
    }
    return ways, 2 * count * PIECE


def copy_rate(took: Mapping[str, float], moved: int) -> float:
    """Bytes a second of the faster way, `took` being the seconds of each among others."""
    return moved / min(seconds for name, seconds in took.items() if name.startswith(COPY))


def copy_function() -> dict[str, Any]:
    """The PrimFunc `copy` of as much as is timed."""
    return {"copy": _copy(_count())}


def _count() -> int:
    return max(1, COPY_BYTES // PIECE)


def _copy(count: int) -> Any:
    """PrimFunc(x, y (count PIECE,) uint8): y = x."""
    with kernel() as builder:
        x = T.arg("x", T.buffer((count * PIECE,), "uint8"))
        y = T.arg("y", T.buffer((count * PIECE,), "uint8"))
        with launch([tirx.const(count, "int32")], THREADS) as (place, thread):
            at = int64(place[0]) * PIECE + int64(thread) * 16
            Device("lb_copy", _COPY).run(x.ptr_to([at]), y.ptr_to([at]))
    return builder.get()
