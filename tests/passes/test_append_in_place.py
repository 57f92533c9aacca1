"""A cache that grows by a concat becomes memory that is appended to; near misses stay copies."""

from collections.abc import Callable
from typing import Any

import pytest
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model, Port, State
from lbcompiler.ir.rewrite import calls
from lbcompiler.ir.verify import verify
from lbcompiler.passes import AppendInPlace

B, P, L = (tvm.tirx.Var(name, "int64") for name in ("batch", "past", "length"))
CACHE = {"x": (B, L, 3, 8), "past": (B, 3, P, 8)}
STATE = State("past", "present", 2, "past", "length")


def op(name: str) -> Any:
    return tvm.ir.Op.get(name)


def model_of(inputs: dict[str, tuple[Any, ...]], write: Callable[..., list[Any]]) -> Model:
    """`write(emit, *inputs)` returns the outputs y, present."""
    builder = relax.BlockBuilder()
    params = [relax.Var(name, relax.TensorType(list(s), "float32")) for name, s in inputs.items()]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple(write(builder.emit, *params)))
        builder.emit_func_output(out)
    ports = tuple(
        Port(name, "float32", tuple(d if isinstance(d, int) else d.name for d in shape))
        for name, shape in inputs.items()
    )
    outputs = (Port("y", "float32", ()), Port("present", "float32", ()))
    model = Model(builder.get(), {}, ports, outputs)
    verify(model)
    return model


def cached(emit: Any, x: Any, past: Any) -> list[Any]:
    rows = emit(relax.op.permute_dims(x, [0, 2, 1, 3]))
    present = emit(relax.op.concat((past, rows), axis=2))
    return [emit(relax.op.nn.relu(present)), present]


def test_a_grown_input_becomes_an_append_to_its_own_memory() -> None:
    after = AppendInPlace()(model_of(CACHE, cached))
    verify(after)
    assert after.states == (STATE,)
    x, state, sizes = after.module["main"].params
    assert [d.name if isinstance(d, tvm.tirx.Var) else int(d) for d in state.ty.shape.values] == [
        "past_room", "batch", 3, 8,
    ]  # fmt: skip
    assert sizes.ty.values[0].same_as(P)
    append, permuted, relu = calls(after.module)
    assert append.op == ops.APPEND
    assert append.args[0].same_as(state)
    assert append.args[1].same_as(x)  # the rows' own permutation is done while they are written
    assert [int(axis) for axis in append.attrs["axes"]] == [1, 0, 2, 3]
    assert (permuted.op, relu.op) == (op("relax.permute_dims"), op("relax.nn.relu"))


def test_the_memory_itself_is_returned() -> None:
    main = AppendInPlace()(model_of(CACHE, cached)).module["main"]
    bound = {b.var: b.value for block in main.body.blocks for b in block.bindings}
    results = bound[main.body.body]
    while not isinstance(results, relax.Tuple):
        results = bound[results]
    assert bound[results.fields[1]].op == ops.APPEND


def test_rows_of_a_fixed_number() -> None:
    inputs = {"x": (B, 1, 3, 8), "past": (B, 3, P, 8)}
    assert AppendInPlace()(model_of(inputs, cached)).states[0].rows == 1


def test_one_dimension_grows_in_one_way() -> None:
    def write(emit: Any, x: Any, past: Any, z: Any, other: Any) -> list[Any]:
        y = cached(emit, x, past)[1]
        return [emit(relax.op.concat((other, z), axis=0)), y]

    inputs = {**CACHE, "z": (3,), "other": (P,)}
    assert [state.input for state in AppendInPlace()(model_of(inputs, write)).states] == ["other"]


def prepended(emit: Any, x: Any, past: Any) -> list[Any]:
    rows = emit(relax.op.permute_dims(x, [0, 2, 1, 3]))
    present = emit(relax.op.concat((rows, past), axis=2))
    return [emit(relax.op.nn.relu(present)), present]


def read_elsewhere(emit: Any, x: Any, past: Any) -> list[Any]:
    _, present = cached(emit, x, past)
    return [emit(relax.op.nn.relu(past)), present]


def past_returned(emit: Any, x: Any, past: Any) -> list[Any]:
    _, present = cached(emit, x, past)
    return [past, present]


def not_returned(emit: Any, x: Any, past: Any) -> list[Any]:
    y, present = cached(emit, x, past)
    return [y, emit(relax.op.exp(present))]


def of_three(emit: Any, x: Any, past: Any) -> list[Any]:
    rows = emit(relax.op.permute_dims(x, [0, 2, 1, 3]))
    present = emit(relax.op.concat((past, rows, rows), axis=2))
    return [emit(relax.op.nn.relu(present)), present]


def onto_itself(emit: Any, x: Any, past: Any) -> list[Any]:
    present = emit(relax.op.concat((past, past), axis=2))
    return [emit(relax.op.nn.relu(x)), present]


def along_a_fixed_axis(emit: Any, x: Any, past: Any) -> list[Any]:
    present = emit(relax.op.concat((past, past_like(emit, x)), axis=3))
    return [emit(relax.op.nn.relu(present)), present]


def past_like(emit: Any, x: Any) -> Any:
    return emit(relax.op.permute_dims(x, [0, 2, 1, 3]))


def some_of_the_rows(emit: Any, x: Any, past: Any) -> list[Any]:
    rows = emit(relax.op.permute_dims(x, [0, 2, 1, 3]))
    some = emit(relax.op.strided_slice(rows, [2], [0], [L - 1], [1], assume_inbound=True))
    present = emit(relax.op.concat((past, some), axis=2))
    return [emit(relax.op.nn.relu(present)), present]


@pytest.mark.parametrize(
    ("inputs", "write"),
    [
        pytest.param(CACHE, prepended, id="rows come first"),
        pytest.param(CACHE, read_elsewhere, id="the past is read in its old layout"),
        pytest.param(CACHE, past_returned, id="the past leaves the model"),
        pytest.param(CACHE, not_returned, id="the grown tensor does not leave it"),
        pytest.param(CACHE, of_three, id="three parts"),
        pytest.param(CACHE, onto_itself, id="the past is its own rows"),
        pytest.param(
            {"x": (B, P, 3, 8), "past": (B, 3, P, 8)}, along_a_fixed_axis, id="along a fixed axis"
        ),
        pytest.param(
            {"x": (B, L, 3, 8), "past": (B, 3, 16, 8)}, cached, id="a past of fixed length"
        ),
        pytest.param(CACHE, some_of_the_rows, id="how many rows is computed"),
    ],
)
def test_left_alone(inputs: dict[str, tuple[Any, ...]], write: Callable[..., list[Any]]) -> None:
    before = model_of(inputs, write)
    after = AppendInPlace()(before)
    assert after.states == ()
    tvm.ir.assert_structural_equal(after.module, before.module, map_free_vars=True)
