"""Threads share the work and are not pinned, whichever Python thread calls."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from lbcompiler.targets.cpu import threads

TASKS = Path("/proc/self/task")
pytestmark = [
    pytest.mark.skipif(not TASKS.exists(), reason="reads the threads' CPU time from /proc"),
]


@T.prim_func
def busy(x: T.Buffer((64,), "float32")):
    for i in T.parallel(64):
        for _ in range(2000000):
            x[i] = x[i] * T.float32(0.999) + T.float32(1)


def cpu_seconds() -> dict[str, float]:
    """Of every thread of this process that is alive."""
    return {t.name: int((t / "schedstat").read_text().split()[0]) / 1e9 for t in TASKS.iterdir()}


def in_new_thread(function: Callable[[], Any]) -> Any:
    """A pool belongs to its thread and grows no more: a test needs a fresh one."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def shares(count: int | None) -> list[float]:
    """The parts of a kernel's CPU time that threads took, largest first."""
    kernel = tvm.compile(busy.with_attr("global_symbol", "busy"), target="llvm")["busy"]

    def run() -> list[float]:
        threads.set_threads(count)
        x = tvm.runtime.tensor(np.zeros(64, np.float32))
        kernel(x)
        before = cpu_seconds()
        kernel(x)
        spent = [after - before.get(name, 0) for name, after in cpu_seconds().items()]
        return sorted((s / sum(spent) for s in spent if s / sum(spent) > 0.1), reverse=True)

    try:
        return in_new_thread(run)
    finally:
        threads.set_threads(None)


def test_one_thread_does_all_the_work() -> None:
    assert shares(1)[0] > 0.95


@pytest.mark.skipif(len(threads.available_cores()) < 2, reason="needs two cores")
def test_two_threads_do_half_of_the_work_each() -> None:
    first, second, *rest = shares(2)
    assert first < 0.6
    assert second > 0.4
    assert not rest


def test_no_thread_is_pinned() -> None:
    def affinity() -> list[int]:
        shares(None)
        threads.ensure_threads()
        return sorted(os.sched_getaffinity(0))

    assert in_new_thread(affinity) == threads.available_cores()


def test_the_default_is_no_more_than_the_cores_there_are() -> None:
    assert 1 <= threads.default_threads() <= len(threads.available_cores())
    assert threads.set_threads(10_000) == len(threads.available_cores())
    assert threads.set_threads(None) == threads.default_threads()


def test_no_threads_is_an_error() -> None:
    with pytest.raises(ValueError, match="it must be 1 or more"):
        threads.set_threads(0)
