"""Threads share the work and are not pinned, whichever Python thread calls."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from lbcompiler.targets.cpu import threads

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks pthread_self who runs")


@T.prim_func
def who(x: T.Buffer((64,), "int64")):
    for i in T.parallel(64):
        x[i] = T.call_extern("int64", "pthread_self")


def in_new_thread(function: Callable[[], Any]) -> Any:
    """A pool belongs to its thread and grows no more: a test needs a fresh one."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def shares(count: int | None) -> list[int]:
    """How many of 64 tasks each thread ran, with `count` threads set."""
    kernel = tvm.compile(who.with_attr("global_symbol", "who"), target="llvm")["who"]

    def run() -> list[int]:
        threads.set_threads(count)
        x = tvm.runtime.tensor(np.zeros(64, np.int64))
        kernel(x)
        return sorted(Counter(x.numpy().tolist()).values())

    try:
        return in_new_thread(run)
    finally:
        threads.set_threads(None)


def test_one_thread_does_all_the_work() -> None:
    assert shares(1) == [64]


@pytest.mark.skipif(len(threads.available_cores()) < 2, reason="needs two cores")
def test_two_threads_do_half_of_the_work_each() -> None:
    assert shares(2) == [32, 32]


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
