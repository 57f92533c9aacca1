"""ONNX tensors as weights that are read when they are asked for.

Numbers inside the protobuf stay in it until `load`; numbers in external files are read from
their file, just their bytes, at every `load`. Half, bfloat16 and double become float32, in which
everything is computed. Where external data lies is taken from the model file, so it is not
trusted: a place outside the model's folder (absolute, by `..`, or through a link) is refused.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lbcompiler.errors import ModelError
from lbcompiler.ir.model import Array, Weight

FLOAT32 = ("float16", "bfloat16", "float64")
SUB_BYTE = {"int4": 2, "uint4": 2, "float4_e2m1fn": 2, "int2": 4, "uint2": 4}  # elements a byte
UNREADABLE = (
    TensorProto.STRING,
    TensorProto.COMPLEX64,
    TensorProto.COMPLEX128,
    TensorProto.FLOAT6E2M3,
    TensorProto.FLOAT6E3M2,
)


def element_type(code: int) -> str:
    """The dtype of an ONNX element type, as declared."""
    if code in UNREADABLE or code not in TensorProto.DataType.values() or not code:
        known = code in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(code) if known else str(code)
        raise ModelError(f"tensors of element type {name} cannot be compiled")
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)))


def computed_type(dtype: str) -> str:
    """The dtype we compute in for a declared one."""
    return "float32" if dtype in FLOAT32 else dtype


def widened(array: Array) -> Array:
    """The array in the dtype we compute in."""
    return array.astype(computed_type(str(array.dtype)), copy=False)


def read_weight(tensor: TensorProto, folder: Path) -> Weight:
    """The weight of an initializer or constant; files of external data lie in `folder`.

    Raises ModelError if its data is missing, too short, or outside of the folder."""
    dtype, shape = element_type(tensor.data_type), tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"The tensor {tensor.name!r} has a negative dimension: {list(shape)}.")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, dtype, shape, folder)
    _check_length(tensor, dtype, shape)
    return Weight(shape, computed_type(dtype), lambda: widened(numpy_helper.to_array(tensor)))


def _byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    if dtype in SUB_BYTE:
        return -(-count // SUB_BYTE[dtype])
    return count * np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize


def _check_length(tensor: TensorProto, dtype: str, shape: tuple[int, ...]) -> None:
    if not tensor.HasField("raw_data"):
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        stored = max(len(getattr(tensor, field)) for field in fields)
        if dtype not in SUB_BYTE and stored != math.prod(shape):
            raise ModelError(
                f"The tensor {tensor.name!r} {list(shape)} needs {math.prod(shape)} numbers and "
                f"has {stored}: "
                "the model file is damaged. Export or download it again."
            )
        return
    need, found = _byte_count(dtype, shape), len(tensor.raw_data)
    if found != need:
        raise ModelError(
            f"The tensor {tensor.name!r} ({dtype} {list(shape)}) needs {need} bytes and has "
            f"{found}: the "
            "model file is damaged. Export or download it again."
        )


def _external(tensor: TensorProto, dtype: str, shape: tuple[int, ...], folder: Path) -> Weight:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"The tensor {tensor.name!r} lies in the external file {entries.get('location')!r}"
    path = _inside(entries.get("location", ""), folder, where)
    need = _byte_count(dtype, shape)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(need)))
    except ValueError:
        raise ModelError(f"{where}, whose offset or length is not a number: {entries}.") from None
    found = path.stat().st_size
    if offset < 0 or length != need or offset + need > found:
        raise ModelError(
            f"{where}, which should hold {need} bytes ({dtype} {list(shape)}) from byte {offset}; "
            "the model says "
            f"{length} bytes and the file ends at {found}. It is truncated or belongs to another "
            "model: put the file that was exported together with the model beside it."
        )
    return Weight(
        shape, computed_type(dtype), lambda: _read(tensor, path, offset, need, dtype, shape)
    )


def _inside(location: str, folder: Path, where: str) -> Path:
    """The file at `location`, which lies in `folder` once links are followed."""
    if not location or "\0" in location:
        raise ModelError(f"{where}: it has no usable location. Export the model again.")
    root = folder.resolve()
    path = (root / location).resolve()
    if Path(location).is_absolute() or ".." in Path(location).parts or root not in path.parents:
        raise ModelError(
            f"{where}, which is outside of the model's folder {str(root)!r}. Such a path may read "
            "any file of "
            "this machine and is refused: put the data beside the model, without links."
        )
    if not path.is_file():
        raise ModelError(
            f"{where}, which is not in {str(root)!r}. Put the file that was exported together with "
            "the model there."
        )
    return path


def _read(
    tensor: TensorProto, path: Path, offset: int, length: int, dtype: str, shape: tuple[int, ...]
) -> Array:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise ModelError(f"{str(path)!r} became shorter while it was read.")
    if dtype not in SUB_BYTE:
        plain = np.dtype(getattr(ml_dtypes, dtype, dtype)).newbyteorder("<")
        return widened(np.frombuffer(data, plain).reshape(shape))
    packed = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=data)
    return np.asarray(numpy_helper.to_array(packed))
