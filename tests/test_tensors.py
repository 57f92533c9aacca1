"""Arrays that go into the code and come out of it as they lie, and those that must be copied."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lbcompiler
from lbcompiler.tensors import SMALL, GrowingTensor, as_array, as_tensor


def aligned(count: int, offset: int = 0) -> np.ndarray:
    """float32 that start `offset` bytes behind a multiple of 64."""
    raw = np.zeros(4 * count + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + 4 * count].view(np.float32)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_an_aligned_array_is_read_where_it_lies() -> None:
    array = aligned(48)
    assert as_tensor(array).data_ptr() == address(array)
    assert as_tensor(array.reshape(6, 8)).data_ptr() == address(array)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(aligned(48, offset=16), id="not aligned"),
        pytest.param(aligned(48).reshape(6, 8).T, id="not contiguous"),
        pytest.param(np.frombuffer(bytes(192), np.float32), id="read-only"),
        pytest.param(np.zeros((3, 0), np.float32), id="empty"),
        pytest.param(np.array(3, np.float32), id="a scalar"),
    ],
)
def test_any_other_is_copied_whole(array: np.ndarray) -> None:
    tensor = as_tensor(array)
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_large_result_is_the_memory_itself_unless_another_holds_it() -> None:
    tensor = GrowingTensor((64,), "float32", SMALL).tensor
    assert address(as_array(tensor, ())) == tensor.data_ptr()
    assert address(as_array(tensor, {tensor.data_ptr()})) != tensor.data_ptr()


def test_growing_keeps_the_rows_that_are_used() -> None:
    memory = GrowingTensor((3,), "int32", 2)
    memory.rows[:] = [[1, 2, 3], [4, 5, 6]]
    memory.grow(5, kept=1)
    assert memory.room == 5
    np.testing.assert_array_equal(memory.rows[0], [1, 2, 3])


def test_outputs_that_are_an_input_or_each_other_are_the_callers_own(tmp_path: Path) -> None:
    def port(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 128])

    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["again"]),
    ]
    graph = helper.make_graph(nodes, "g", [port("x")], [port("same"), port("y"), port("again")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    program = lbcompiler.compile(tmp_path / "m.onnx").load(1)
    x = aligned(128 * 256).reshape(256, 128)
    x[...] = 1
    outputs = program(x)
    assert len({address(array) for array in [x, *outputs.values()]}) == 4
    first = outputs["y"].copy()
    outputs["again"][...] = 7
    program(x * 2)
    np.testing.assert_array_equal(outputs["y"], first)
    np.testing.assert_array_equal(x, 1)
