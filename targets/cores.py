"""The cores of this machine: those that the process may use, and work on all of them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Done = Callable[[int, int], None]  # (items done, of how many)


def available_cores() -> list[int]:
    """The logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def at_once(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    done: Done = lambda _done, _total: None,
) -> list[Result]:
    """`function` of every item, as many at once as there are cores. The first error ends it, and
    what has not begun by then is not done.
    """
    with ThreadPoolExecutor(len(available_cores())) as pool:
        try:
            work = [pool.submit(function, item) for item in items]
            for count, future in enumerate(as_completed(work), 1):
                future.result()
                done(count, len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in work]
