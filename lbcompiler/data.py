"""Input data from disk: arrays by input name, with a leading axis of samples.

* `F.npz`: one array for each input, under its name.
* `F.npy`: one array, for a model with one input.
* a folder: `NAME.npy` for each input, or `.npz` files, joined along the first axis in the order
  of their names.

NumPy's own formats are the only ones read, never with pickle: data may come from anywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib spells it like a variable

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import InputError
from lbcompiler.files import appearing

Array = NDArray[Any]
Feeds = dict[str, Array]

ONLY_INPUT = ""  # the name of an array that came without one
DAMAGED = (OSError, ValueError, EOFError, BadZipFile, ZlibError, NotImplementedError)
SAMPLES_AT_ONCE = (
    4  # where the batch is dynamic: enough to fill a GEMM, little enough for big outputs
)


class Port(Protocol):
    """An input as the manifest has it; a string in `shape` is a dynamic dimension."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str]: ...


def read_arrays(path: str | Path) -> Feeds:
    """The arrays of a file or folder by name (`ONLY_INPUT` for a bare npy). Raises InputError."""
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"there is no data at {path}: give a .npz or .npy file, or a folder of them"
        )
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".npy":
        return {ONLY_INPUT: read_array(path)}
    raise InputError(
        f"cannot tell what {path} holds: data is a .npz or .npy file, or a folder of them"
    )


def read_array(path: str | Path) -> Array:
    """One `.npy` file, memory-mapped. Raises InputError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path} is a .npz archive, one array was expected: name it .npz")
    return array


def bind(arrays: Mapping[str, Array], inputs: Sequence[Port], source: object) -> Feeds:
    """The arrays for just these inputs. Raises InputError when one is missing."""
    if ONLY_INPUT in arrays:
        if len(inputs) != 1:
            names = ", ".join(port.name for port in inputs)
            raise InputError(
                f"{source} holds one array without a name, but the model takes {len(inputs)} "
                f"inputs ({names}): put them into one .npz file under these names"
            )
        return {inputs[0].name: arrays[ONLY_INPUT]}
    missing = [port.name for port in inputs if port.name not in arrays]
    if missing:
        raise InputError(
            f"{source} has no array for the input {', '.join(map(repr, missing))}; "
            f"it holds {', '.join(map(repr, sorted(arrays))) or 'nothing'}"
        )
    return {port.name: arrays[port.name] for port in inputs}


def read_feeds(data: Path | None, files: Iterable[str], inputs: Sequence[Port]) -> Feeds:
    """What one run is given: the arrays of `data`, then each `NAME=FILE.npy`. Raises InputError."""
    feeds = {} if data is None else read_arrays(data)
    if ONLY_INPUT in feeds:
        feeds = bind(feeds, inputs, data)
    for item in files:
        name, _, path = item.rpartition("=")
        if not name:
            raise InputError(f"--input {item!r} is not NAME=FILE.npy, e.g. input_ids=ids.npy")
        feeds[name] = read_array(path)
    return feeds


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz that appears whole. Not `numpy.savez`: there no array may be named `file`."""
    if path.suffix != ".npz":
        raise InputError(f"outputs are saved as .npz, not as {path.name}")
    with appearing(path) as partial, ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def batches(
    feeds: Feeds, inputs: Sequence[Port], source: object, limit: int | None = None, at_once: int = 0
) -> Iterator[Feeds]:
    """Cut the samples into what one run of the model takes.

    The first axis of the first input is the batch. Where it is dynamic, up to `at_once` samples
    make a run (0: `SAMPLES_AT_ONCE`); where it is fixed, just so many. An input with another first
    dimension (a mask, a table of positions) goes whole into every run. Raises InputError.
    """
    counts = {port.name: _leading(feeds[port.name], port, source) for port in inputs}
    batch = inputs[0].shape[0] if inputs and len(inputs[0].shape) else 1
    alike = [port.name for port in inputs if len(port.shape) and port.shape[0] == batch]
    samples = max((counts[name] for name in alike), default=1)
    uneven = [name for name in alike if counts[name] not in (samples, batch)]
    if uneven or samples == 0:
        found = ", ".join(f"{name!r} has {counts[name]}" for name in alike)
        raise InputError(f"{source} must hold one number of samples for all inputs, but {found}")
    sliced = {
        port.name
        for port in inputs
        if counts[port.name] == samples
        and (port.name in alike or (port.shape and isinstance(port.shape[0], str)))
    }
    if limit is not None:
        samples = min(samples, limit)
    step = batch if isinstance(batch, int) else at_once or SAMPLES_AT_ONCE
    if isinstance(batch, int) and samples % batch:
        raise InputError(
            f"the model takes {batch} samples at a time, {source} gives {samples}: "
            "make it a multiple"
        )
    for start in range(0, samples, step):
        chunk = slice(start, min(start + step, samples))
        yield {name: array[chunk] if name in sliced else array for name, array in feeds.items()}


def _leading(array: Array, port: Port, source: object) -> int:
    """The size of the first axis; 1 of a scalar. Raises InputError on a rank not the model's."""
    if array.ndim != len(port.shape):
        raise InputError(
            f"the array {port.name!r} of {source} has shape {array.shape}, but the model's input "
            f"has {len(port.shape)} dimensions ({'x'.join(map(str, port.shape))}), samples first"
        )
    return array.shape[0] if array.ndim else 1


def _read_npz(path: Path) -> Feeds:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is a bare array, not an archive: name it .npy")
        with archive:
            return {name: archive[name] for name in archive.files}
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def _read_folder(folder: Path) -> Feeds:
    single, archives = sorted(folder.glob("*.npy")), sorted(folder.glob("*.npz"))
    if single and archives:
        raise InputError(f"{folder} holds .npy and .npz files: keep one kind in a folder")
    if single:
        return {path.stem: read_array(path) for path in single}
    if not archives:
        raise InputError(f"{folder} holds no .npy or .npz file")
    parts = [_read_npz(path) for path in archives]
    for path, part in zip(archives, parts, strict=True):
        if part.keys() != parts[0].keys():
            raise InputError(
                f"{path} holds other arrays ({', '.join(sorted(part))}) than {archives[0]} "
                f"({', '.join(sorted(parts[0]))})"
            )
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise InputError(
            f"the arrays of {folder} do not join along the first axis: {error}"
        ) from None


def _unreadable(path: str | Path, error: Exception) -> InputError:
    words = str(error)
    if "Object arrays" in words or "Python objects" in words:
        return InputError(f"{path} holds Python objects, which are never read: save plain arrays")
    if "pickle" in words:  # what NumPy says of any file that it does not know
        return InputError(f"{path} is no NumPy file: save it with numpy.savez or numpy.save")
    return InputError(f"cannot read {path}, it may be truncated: {error}")
