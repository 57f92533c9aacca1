"""The compiled model and its float source side by side: is it faster than what it came from?

Both run on the same inputs and threads, in turn (`bench.timing`). Inputs are made up: ones for
integers (a token, a mask), a seeded normal for floats, one sample, 128 along every other dynamic
dimension unless its bounds say otherwise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.artifact import Artifact, PortRecord
from lbcompiler.bench.timing import interleaved
from lbcompiler.errors import ConfigError
from lbcompiler.ir.model import Array
from lbcompiler.references import open_reference

LENGTH = 128  # of a dynamic dimension: a sentence, the side of a small image
ROUNDS, SECONDS = 9, 4.0  # whichever ends first


def compare(artifact: Artifact, model: str | Path, threads: int | None = None) -> dict[str, float]:
    """{"ms", "float_ms", "ratio"}: ratio above 1 is faster than float."""
    feeds = synthetic_inputs(artifact)
    program = artifact.load(threads)
    reference = open_reference(model, threads=threads)
    work = {"ours": lambda: program.run(feeds), "float": lambda: reference.run(feeds)}
    took = interleaved(work, ROUNDS, SECONDS)
    return {
        "ms": took["ours"] * 1e3,
        "float_ms": took["float"] * 1e3,
        "ratio": took["float"] / took["ours"],
    }


def synthetic_inputs(
    artifact: Artifact, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Array]:
    """One made-up array for every input, of the size that `shapes` gives it.

    A dynamic dimension that has a size in one input has it in all. Raises ConfigError for a name
    or a number of dimensions that the model does not have.
    """
    ports = {port.name: port for port in artifact.manifest.inputs}
    bounds = {dim.name: (dim.low, dim.high) for dim in artifact.manifest.dims}
    for name, shape in (shapes or {}).items():
        if name not in ports or len(shape) != len(ports[name].shape):
            listed = ", ".join(f"{p.name}:{'x'.join(map(str, p.shape))}" for p in ports.values())
            raise ConfigError(
                f"the input {name}:{'x'.join(map(str, shape))} is none of the model's: {listed}"
            )
        for dim, size in zip(ports[name].shape, shape, strict=True):
            if isinstance(dim, str):
                bounds[dim] = (size, size)
            elif dim != size:
                raise ConfigError(f"dimension {dim} of the input {name!r} is fixed, not {size}")
    seed = np.random.default_rng(0)
    return {port.name: _values(port, _extents(port, bounds), seed) for port in ports.values()}


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
