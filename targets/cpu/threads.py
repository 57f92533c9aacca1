"""How many threads a compiled model uses: set here, never by the user's environment variables.

Left alone, TVM's pool starts half of the logical cores and pins each thread, the caller's too, to
one of them: on two cores it runs on one, and a second process is pinned onto the same one. The
packed function `runtime.config_threadpool` sets the number and, with mode -3, leaves all threads on
all cores. A pool belongs to the thread that calls, and grows no more once it has run something: so
`ensure_threads` comes before a thread's first call of a kernel, and costs next to nothing
afterwards.
"""

import threading

import psutil
import tvm

from lbcompiler.targets.cores import available_cores

_SHARE_ALL_CORES = -3  # tvm::runtime::threading::ThreadGroup::kSpecifyThreadShareAllCore

_wanted: int | None = None
_local = threading.local()


def default_threads() -> int:
    """Physical cores, or fewer where the process may not use them all."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, len(available_cores())))


def set_threads(count: int | None) -> int:
    """Use `count` threads, or the default number for None, in every thread from its next call on.

    Returns the number that will run: at most the cores this process may use. Raises ValueError
    below 1.
    """
    global _wanted
    if count is not None and count < 1:
        raise ValueError(f"the number of threads is {count}; it must be 1 or more")
    _wanted = count
    return ensure_threads()


def ensure_threads() -> int:
    """Give the calling thread's pool the number last set; call it before running a kernel."""
    known: tuple[int | None, int] | None = getattr(_local, "configured", None)
    if known is not None and known[0] == _wanted:
        return known[1]
    cores = available_cores()
    count = min(_wanted or default_threads(), len(cores))
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, count, [str(core) for core in cores])
    _local.configured = (_wanted, count)
    return count
