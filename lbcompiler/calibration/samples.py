"""Calibration data: what a user names becomes batches of feeds that are known to fit the model.

| said | data |
|---|---|
| `F.npz`, `F.npy`, a folder | as `lbcompiler.data` reads them, samples along the first axis |
| `module:function` | what the function yields: a mapping of input name to array, a batch each |
| an iterable (Python) | the same |
| `random` | drawn with a fixed seed: normal floats, whole numbers below the table they index |

A function is called for every pass over the data, so it has to yield the same again; an iterable is
gone through once and held in memory."""

import hashlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.data import Feeds, batches, bind, read_arrays
from lbcompiler.errors import InputError, LbcWarning
from lbcompiler.ir.model import Array, Dim, Port

RANDOM = "random"
RANDOM_SAMPLES = 16
RANDOM_EXTENT = 64  # of a dynamic dimension, where its bounds allow it
EVERY = 8
VALUES_AT_ONCE = 512  # of the first input: a text of 512 tokens, or a picture


@dataclass(frozen=True)
class Samples:
    """`count` batches that may be gone through again.

    `fingerprint` tells whether other data is the same: a hash of the numbers, or their seed."""

    name: str
    fingerprint: str
    count: int
    open: Callable[[], Iterator[Feeds]]

    def __iter__(self) -> Iterator[Feeds]:
        return self.open()


def read_samples(
    said: Any,
    inputs: Sequence[Port],
    dims: Sequence[Dim],
    limit: int | None = None,
    indexed: Mapping[str, int] | None = None,
) -> Samples:
    """The samples of `said` (the table above), at most `limit`. Raises InputError.

    `indexed` says for whole-number inputs how many rows the table has that they index."""
    if said == RANDOM:
        return _random(inputs, dims, limit or RANDOM_SAMPLES, indexed or {})
    if not isinstance(said, (str, os.PathLike)):
        return _iterated("an iterator", said, inputs, limit)
    path = Path(said)
    if not path.exists() and ":" in str(said):
        return _called(str(said), _function(str(said)), inputs, limit)
    feeds = bind(read_arrays(path), inputs, said)
    checked = {port.name: _checked(feeds[port.name], port, said) for port in inputs}
    first = checked[inputs[0].name]
    runs = list(batches(checked, inputs, said, limit, _at_once(first, limit)))
    name = str(said)
    return Samples(name, _hash(name, map(_digest, runs)), len(runs), lambda: iter(runs))


def _at_once(first: Array, limit: int | None) -> int:
    """How many samples make a batch: few enough that small ones too have batches to judge by."""
    if not first.ndim or not first.size:
        return 1
    count = min(len(first), limit or len(first))
    return max(1, min(VALUES_AT_ONCE // first[:1].size, -(-count // EVERY)))


def _iterated(
    name: str, source: Iterable[Any], inputs: Sequence[Port], limit: int | None
) -> Samples:
    held = [_batch(name, item, inputs) for item in islice(source, limit)]
    return Samples(name, _hash(name, map(_digest, held)), len(held), lambda: iter(held))


def _called(
    name: str, function: Callable[[], Iterable[Any]], inputs: Sequence[Port], limit: int | None
) -> Samples:
    def run() -> Iterator[Feeds]:
        return (_batch(name, item, inputs) for item in islice(function(), limit))

    digests = [_digest(feeds) for feeds in run()]

    def again() -> Iterator[Feeds]:
        for feeds, digest in zip_longest(run(), digests):
            if feeds is None or digest is None or _digest(feeds) != digest:
                raise InputError(
                    f"{name} yields other data when it is called again, and it is gone through "
                    "several times: give its random numbers a seed, or hand what it yields to "
                    "lbcompiler.compile in Python, which holds it"
                )
            yield feeds

    return Samples(name, _hash(name, digests), len(digests), again)


def _batch(name: str, item: Any, inputs: Sequence[Port]) -> Feeds:
    if not isinstance(item, Mapping):
        raise InputError(f"{name} gave {type(item).__name__}, not a mapping of input to array")
    feeds = bind({key: np.asarray(value) for key, value in item.items()}, inputs, name)
    return {port.name: _checked(feeds[port.name], port, name) for port in inputs}


def _function(said: str) -> Callable[[], Iterable[Any]]:
    module, _, name = said.rpartition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module lies where the command is run
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"there is no calibration data at {said}: no such file, and as module:function {error}"
        ) from None
    if not callable(found):
        raise InputError(f"{said} is no function: it must yield mappings of input name to array")
    return found  # type: ignore[no-any-return]


def _checked(array: Array, port: Port, source: object) -> Array:
    """The array in the input's dtype. Raises InputError on what the model cannot be fed."""
    if array.ndim != len(port.shape):
        raise InputError(
            f"the array {port.name!r} of {source} has shape {array.shape}, but the model's input "
            f"has {len(port.shape)} dimensions ({'x'.join(map(str, port.shape))}), samples first"
        )
    for extent, dim in list(zip(array.shape, port.shape, strict=True))[1:]:
        if isinstance(dim, int) and extent != dim:
            raise InputError(
                f"the array {port.name!r} of {source} has shape {array.shape}, the model takes "
                f"{'x'.join(map(str, port.shape))}"
            )
    if not np.can_cast(array.dtype, port.dtype, "same_kind"):
        raise InputError(
            f"the array {port.name!r} of {source} is {array.dtype}, the model takes {port.dtype}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"the array {port.name!r} of {source} holds NaN or infinity, from which nothing can be "
            "learned: leave those samples out"
        )
    return np.asarray(array, port.dtype)


def _random(
    inputs: Sequence[Port], dims: Sequence[Dim], count: int, indexed: Mapping[str, int]
) -> Samples:
    bounds = {dim.name: dim for dim in dims}

    def extent(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        bound = bounds.get(dim, Dim(dim))
        return min(max(RANDOM_EXTENT, bound.low), bound.high or RANDOM_EXTENT)

    def array(port: Port, draw: np.random.Generator) -> Array:
        shape = tuple(
            1 if i == 0 and isinstance(d, str) else extent(d) for i, d in enumerate(port.shape)
        )
        if np.dtype(port.dtype).kind == "f":
            return draw.standard_normal(shape).astype(port.dtype)
        return draw.integers(0, indexed.get(port.name, 2), shape).astype(port.dtype)

    def run() -> Iterator[Feeds]:
        draw = np.random.default_rng(0)
        return ({port.name: array(port, draw) for port in inputs} for _ in range(count))

    return Samples(RANDOM, f"{RANDOM} {count}", count, run)


def _hash(name: str, digests: Iterable[bytes]) -> str:
    """Of all batches. Raises InputError where there are none."""
    parts = list(digests)
    if not parts:
        raise InputError(f"{name} gives no calibration data")
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _digest(feeds: Feeds) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(feeds.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def held_out(samples: Samples) -> tuple[Samples, Samples]:
    """(those to learn from, those to judge by): every eighth batch judges, if there are as many,
    and else the last; a single batch does both, of which an LbcWarning tells.
    """

    def part(judges: bool) -> Callable[[], Iterator[Feeds]]:
        return lambda: (feeds for i, feeds in enumerate(samples) if _judges(i, total) == judges)

    total = samples.count
    if total < 2:
        warnings.warn(
            f"{samples.name} is one batch, so the model is judged on what it was learned from: "
            "choices will look better than they are; give more samples",
            LbcWarning,
            stacklevel=2,
        )
        return samples, samples
    judging = sum(_judges(i, total) for i in range(total))
    return (
        replace(samples, count=total - judging, open=part(False)),
        replace(samples, count=judging, open=part(True)),
    )


def _judges(index: int, total: int) -> bool:
    return index % EVERY == EVERY - 1 if total >= EVERY else index == total - 1
