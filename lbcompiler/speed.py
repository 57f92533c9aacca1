"""The compiled model and its float source side by side: is it faster than what it came from?

Both run on the same inputs and threads, in turn, so that a machine whose speed drifts is fair to
both; the medians are compared. Inputs are made up: ones for integers (a token, a mask), a seeded
normal for floats, one sample, 128 along every other dynamic dimension unless its bounds say
otherwise.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.artifact import Artifact, PortRecord
from lbcompiler.ir.model import Array
from lbcompiler.references import open_reference

LENGTH = 128  # of a dynamic dimension: a sentence, the side of a small image
ROUNDS, SECONDS = 9, 4.0  # whichever ends first


def compare(artifact: Artifact, model: str | Path, threads: int | None = None) -> dict[str, float]:
    """{"ms", "float_ms", "ratio"}: ratio above 1 is faster than float."""
    feeds = synthetic_inputs(artifact)
    program = artifact.load(threads)
    reference = open_reference(model, threads=threads)
    ours, theirs = interleaved(lambda: program.run(feeds), lambda: reference.run(feeds))
    return {"ms": ours * 1e3, "float_ms": theirs * 1e3, "ratio": theirs / ours}


def synthetic_inputs(artifact: Artifact) -> dict[str, Array]:
    """One made-up sample for every input."""
    bounds = {dim.name: (dim.low, dim.high) for dim in artifact.manifest.dims}
    seed = np.random.default_rng(0)
    return {
        port.name: _values(port, _extents(port, bounds), seed) for port in artifact.manifest.inputs
    }


def _extents(port: PortRecord, bounds: Mapping[str, tuple[int, int | None]]) -> list[int]:
    extents = []
    for axis, dim in enumerate(port.shape):
        if isinstance(dim, int):
            extents.append(dim)
            continue
        low, high = bounds.get(dim, (1, None))
        wanted = LENGTH if axis else 1
        extents.append(min(max(wanted, low), high or wanted))
    return extents


def _values(port: PortRecord, shape: list[int], seed: np.random.Generator) -> Array:
    dtype: np.dtype[Any] = np.dtype(port.dtype)
    if dtype.kind == "f":
        return seed.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)


def interleaved(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of each, run in turn after one run to warm up."""
    first(), second()
    took: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    while len(took[0]) < ROUNDS and (time.perf_counter() < end or not took[0]):
        for work, seconds in zip((first, second), took, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return statistics.median(took[0]), statistics.median(took[1])
