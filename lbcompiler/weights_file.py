"""`weights.safetensors`, written one tensor at a time and mapped on load.

The safetensors library writes from a dict that holds every tensor; here a model's weights come one
by one and are let go, and each starts on a multiple of ALIGNMENT bytes, because generated code
loads whole vectors (padding is a tensor named `.pad.N`, as the format allows no holes). The library
reads these files."""

import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.errors import ArtifactError
from lbcompiler.ir.model import Array, Weight

ALIGNMENT = 64  # a cache line, and the widest vector register
PADDING = ".pad."
NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def write_weights(
    path: Path, weights: Mapping[str, Weight], progress: Callable[[int, int], None]
) -> None:
    """Load and write every weight in order; `progress(bytes done, bytes in all)`."""
    entries: dict[str, dict[str, Any]] = {}
    position = 0
    for name, size, held in _with_padding(weights):
        dtype, shape = (held.dtype, held.shape) if held else ("uint8", (size,))
        span = [position, position + size]
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": span}
        position += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    done = 0
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, size, held in _with_padding(weights):
            file.write(_bytes_of(name, held) if held else bytes(size))
            done += size
            progress(done, position)


def _with_padding(weights: Mapping[str, Weight]) -> Iterator[tuple[str, int, Weight | None]]:
    """(name, bytes, weight or None for padding), so that every weight starts aligned."""
    for index, (name, held) in enumerate(weights.items()):
        yield name, held.nbytes, held
        if short := -held.nbytes % ALIGNMENT:
            yield f"{PADDING}{index}", short, None


def _bytes_of(name: str, held: Weight) -> memoryview:
    array = np.asarray(held.load(), order="C")
    if array.shape != held.shape or str(array.dtype) != held.dtype:
        raise AssertionError(
            f"weight {name!r} promised {held.dtype} {held.shape}, "
            f"loaded {array.dtype} {array.shape}"
        )
    return array.reshape(-1).view(np.uint8).data


def map_weights(path: Path) -> dict[str, Array]:
    """Every tensor of the file, mapped. Raises ArtifactError on a broken one."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(mapped[:8], "little")
        entries = json.loads(mapped[8 : 8 + length])
        return {
            name: _view(mapped, 8 + length, entry)
            for name, entry in entries.items()
            if name != "__metadata__" and not name.startswith(PADDING)
        }
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is no readable weight file ({error}): compile the model again"
        ) from None


def _view(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Array:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(int(d) for d in entry["shape"])
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not start <= begin <= end <= len(mapped) or end - begin != size:
        raise ValueError(f"a tensor spans bytes {begin}..{end} of {len(mapped)}")
    return np.frombuffer(mapped, dtype, count=size // dtype.itemsize, offset=begin).reshape(shape)
