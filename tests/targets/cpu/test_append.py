"""The kernel that writes rows behind those a state has, against numpy."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from lbcompiler.ir import ops
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, GENERIC, Isa, detect


def machine(shape: list[int | str], axes: list[int], dtype: str, isa: Isa) -> relax.VirtualMachine:
    """main(state, rows, sizes): rows of that shape, "n" for their dynamic number."""
    past, count, room = (tirx.Var(name, "int64") for name in ("past", "n", "room"))
    extents = [count if d == "n" else d for d in shape]
    inner = [extents[axis] for axis in axes[1:]]
    state = relax.Var("state", relax.TensorType([room, *inner], dtype))
    rows = relax.Var("rows", relax.TensorType(extents, dtype))
    sizes = relax.Var("sizes", relax.ShapeType([past]))
    builder = relax.BlockBuilder()
    with builder.function("main", [state, rows, sizes]):
        with builder.dataflow():
            size = past + extents[axes[0]]
            out = builder.emit_output(ops.append(state, rows, [size, *inner], axes=axes))
        builder.emit_func_output(out)
    return build(builder.get(), isa.tvm_target()).load(tvm.cpu())


@pytest.mark.parametrize("isa", [AVX512_VNNI, AVX2, GENERIC], ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ([2, 3, "n", 5], [2, 0, 1, 3], "float32"),
        (["n", 7], [0, 1], "int64"),
        ([4, 3, 1], [1, 2, 0], "float32"),
        (["n"], [0], "int8"),
    ],
)
def test_rows_go_behind_the_past_and_nowhere_else(
    shape: list[int | str], axes: list[int], dtype: str, isa: Isa
) -> None:
    if not isa.runs_on(detect()):
        pytest.skip(f"this machine has no {isa.name}")
    run = machine(shape, axes, dtype, isa)["main"]
    past = 3
    rows = np.arange(1, 1 + np.prod([4 if d == "n" else d for d in shape])).astype(dtype)
    rows = rows.reshape([4 if d == "n" else d for d in shape])
    moved = rows.transpose(axes)
    memory = tvm.runtime.tensor(np.full((9, *moved.shape[1:]), -1, dtype))
    grown = run(memory, tvm.runtime.tensor(rows), tvm_shape(past))
    assert grown.data_ptr() == memory.data_ptr()
    assert tuple(grown.shape) == (past + len(moved), *moved.shape[1:])
    expected = np.full(memory.shape, -1, dtype)
    expected[past : past + len(moved)] = moved
    np.testing.assert_array_equal(memory.numpy(), expected)


def tvm_shape(*sizes: int) -> object:
    import tvm_ffi

    return tvm_ffi.Shape(sizes)


def test_a_memory_without_room_is_refused() -> None:
    run = machine(["n", 7], [0, 1], "float32", detect())["main"]
    memory, rows = (tvm.runtime.tensor(np.zeros((n, 7), np.float32)) for n in (5, 3))
    with pytest.raises(Exception, match="would have a size of"):
        run(memory, rows, tvm_shape(3))
