from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.passes import FuseAttention
from tests.passes.build import Body, model_of, same_ir

LOWEST = float(np.finfo(np.float32).min)
op = relax.op
INPUTS = {"q": ["b", "s", 6, 16], "k": ["b", "t", 6, 16], "v": ["b", "t", 6, 16]}
SQUARE = {name: ["b", "s", 6, 16] for name in "qkv"}


def number(value: float) -> Any:
    return relax.const(np.float32(value))


def heads_first(b: Body, x: Any) -> Any:
    return b(op.permute_dims(x, [0, 2, 1, 3]))


def scores(b: Body, q: Any, k: Any) -> Any:
    return b(op.matmul(heads_first(b, q), b(op.permute_dims(k, [0, 2, 3, 1]))))


def weighted(b: Body, x: Any, v: Any) -> Any:
    y = b(op.matmul(b(op.nn.softmax(x, -1)), heads_first(b, v)))
    return b(op.permute_dims(y, [0, 2, 1, 3]))


def rows_and_columns(b: Body, length: Any) -> tuple[Any, Any]:
    positions = b(op.arange(0, length, 1, "int64"))
    return b(op.expand_dims(positions, [1])), b(op.expand_dims(positions, [0]))


def future(b: Body, length: Any) -> Any:
    row, column = rows_and_columns(b, length)
    return b(op.greater(column, row))


def additive(b: Body, barred: Any, value: float = LOWEST) -> Any:
    return b(op.multiply(b(op.astype(barred, "float32")), number(value)))


def length_of(x: Any) -> Any:
    return x.ty.shape.values[1]


def fused(*, heads: int = 6, key_heads: int = 6, **attrs: Any) -> Callable[..., Any]:
    def write(b: Body, q: Any, k: Any, v: Any, *mask: Any) -> Any:
        return b(ops.attention(q, k, v, *mask, heads=heads, key_heads=key_heads, **attrs))

    return write


def check(write: Any, expected: Any, inputs: Any) -> None:
    found = FuseAttention()(model_of(inputs, write)).module
    same_ir(found, model_of(inputs, expected))


def scaled_scores(b: Body, q: Any, k: Any, v: Any) -> Any:
    return weighted(b, b(op.multiply(scores(b, q, k), number(0.25))), v)


def divided_scores(b: Body, q: Any, k: Any, v: Any) -> Any:
    return weighted(b, b(op.divide(scores(b, q, k), number(4))), v)


def scaled_query(b: Body, q: Any, k: Any, v: Any) -> Any:
    return weighted(b, scores(b, b(op.multiply(q, number(0.25))), k), v)


def scaled_on_both_sides(b: Body, q: Any, k: Any, v: Any) -> Any:
    q = b(op.multiply(number(0.5), heads_first(b, q)))
    k = b(op.permute_dims(b(op.divide(heads_first(b, k), number(2))), [0, 1, 3, 2]))
    return weighted(b, b(op.matmul(q, k)), v)


@pytest.mark.parametrize(
    "write", [scaled_scores, divided_scores, scaled_query, scaled_on_both_sides]
)
def test_softmax_between_two_matmuls_becomes_one_op(write: Any) -> None:
    check(write, fused(scale=0.25), INPUTS)


def test_heads_that_lie_before_positions_are_read_so() -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        turned = b(op.permute_dims(k, [0, 1, 3, 2]))
        y = b(op.matmul(b(op.nn.softmax(b(op.matmul(q, turned)), 3)), v))
        return b(op.permute_dims(y, [0, 2, 1, 3]))

    inputs = {name: ["b", 6, "s", 16] for name in "qkv"}
    check(write, fused(scale=1, layouts=["BHSD"] * 3), inputs)


def test_memory_with_positions_first_is_read_so() -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        k, v = (b(op.permute_dims(x, [1, 2, 0, 3])) for x in (k, v))
        y = b(op.matmul(q, b(op.permute_dims(k, [0, 1, 3, 2]))))
        y = b(op.matmul(b(op.nn.softmax(y, -1)), v))
        return b(op.permute_dims(y, [0, 2, 1, 3]))

    inputs = {"q": ["b", 6, "s", 16], "k": ["t", "b", 6, 16], "v": ["t", "b", 6, 16]}
    check(write, fused(scale=1, layouts=["BHSD", "SBHD", "SBHD"]), inputs)


def test_keys_that_come_turned_are_turned_back() -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        return weighted(b, b(op.matmul(heads_first(b, q), k)), v)

    def expected(b: Body, q: Any, k: Any, v: Any) -> Any:
        k = b(op.permute_dims(k, [0, 1, 3, 2]))
        return fused(scale=1, layouts=["BSHD", "BHSD", "BSHD"])(b, q, k, v)

    check(write, expected, {**SQUARE, "k": ["b", 6, 16, "s"]})


def repeat_by_broadcast(b: Body, x: Any, groups: int = 3) -> Any:
    batch, heads, length, depth = x.ty.shape.values
    wide = b(op.expand_dims(x, [2]))
    wide = b(op.broadcast_to(wide, relax.ShapeExpr([batch, heads, groups, length, depth])))
    return b(op.reshape(wide, [batch, heads * groups, length, depth]))


def repeat_by_op(b: Body, x: Any) -> Any:
    return b(op.repeat(x, 3, axis=1))


@pytest.mark.parametrize("repeat", [repeat_by_broadcast, repeat_by_op])
def test_repeats_of_shared_heads_vanish(repeat: Any) -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        k = b(op.permute_dims(repeat(b, heads_first(b, k)), [0, 1, 3, 2]))
        weights = b(op.nn.softmax(b(op.matmul(heads_first(b, q), k)), -1))
        y = b(op.matmul(weights, repeat(b, heads_first(b, v))))
        return b(op.permute_dims(y, [0, 2, 1, 3]))

    inputs = {"q": ["b", "s", 6, 16], "k": ["b", "s", 2, 16], "v": ["b", "s", 2, 16]}
    check(write, fused(key_heads=2, scale=1), inputs)


def test_a_stack_of_q_k_and_v_is_read_in_place() -> None:
    def write(b: Body, x: Any) -> Any:
        moved = b(op.permute_dims(x, [2, 0, 3, 1, 4]))
        q, k, v = (
            b(op.squeeze(b(op.strided_slice(moved, [0], [i], [i + 1])), [0])) for i in range(3)
        )
        turned = b(op.permute_dims(k, [0, 1, 3, 2]))
        y = b(op.matmul(b(op.nn.softmax(b(op.matmul(q, turned)), -1)), v))
        return b(op.permute_dims(y, [0, 2, 1, 3]))

    def expected(b: Body, x: Any) -> Any:
        batch, length = x.ty.shape.values[:2]
        stacks = [b(op.reshape(x, [batch, length, 18, 16])) for _ in range(3)]
        return fused(scale=1, first_heads=[0, 6, 12])(b, *stacks)

    check(write, expected, {"x": ["b", "s", 3, 6, 16]})


MASKS = [["b", 1, 1, "t"], ["b", 6, "s", "t"], [1, 6, "s", 1], ["s", "t"], ["t"]]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_a_mask_is_read_with_its_own_extents(shape: list[Any]) -> None:
    def write(b: Body, q: Any, k: Any, v: Any, mask: Any) -> Any:
        scaled = b(op.multiply(scores(b, q, k), number(0.25)))
        return weighted(b, b(op.add(mask, scaled)), v)

    def expected(b: Body, q: Any, k: Any, v: Any, mask: Any) -> Any:
        if len(shape) < 4:
            ones = [1] * (4 - len(shape))
            mask = b(op.reshape(mask, [*ones, *mask.ty.shape.values]))
        return fused(scale=0.25)(b, q, k, v, mask)

    check(write, expected, {**INPUTS, "mask": shape})


def causal_sum(b: Body, q: Any, k: Any, v: Any) -> Any:
    mask = additive(b, future(b, length_of(q)))
    return weighted(b, b(op.add(scores(b, q, k), mask)), v)


def causal_sum_of_four_axes(b: Body, q: Any, k: Any, v: Any) -> Any:
    mask = b(op.expand_dims(additive(b, future(b, length_of(q))), [0, 1]))
    return weighted(b, b(op.add(scores(b, q, k), mask)), v)


def causal_where(b: Body, q: Any, k: Any, v: Any) -> Any:
    row, column = rows_and_columns(b, length_of(q))
    seen = b(op.less_equal(column, row))
    masked = b(op.where(seen, scores(b, q, k), number(LOWEST)))
    return weighted(b, masked, v)


def causal_where_of_numbers(b: Body, q: Any, k: Any, v: Any) -> Any:
    row, column = rows_and_columns(b, length_of(q))
    seen = b(op.logical_not(b(op.less(row, column))))
    mask = b(op.where(seen, number(0), number(-np.inf)))
    return weighted(b, b(op.add(scores(b, q, k), mask)), v)


@pytest.mark.parametrize(
    "write", [causal_sum, causal_sum_of_four_axes, causal_where, causal_where_of_numbers]
)
def test_a_comparison_of_positions_becomes_a_flag(write: Any) -> None:
    check(write, fused(scale=1, causal=True), SQUARE)


def counted_from(b: Body, before: Any, rows: Any) -> Any:
    return b(op.arange(before, before + rows, 1, "int64"))


def moved_by(b: Body, before: Any, rows: Any) -> Any:
    number = b(op.reshape(b(op.shape_to_tensor(b(relax.ShapeExpr([before])))), []))
    return b(op.add(b(op.arange(0, rows, 1, "int64")), number))


@pytest.mark.parametrize("new", [1, "s"])
@pytest.mark.parametrize("positions", [counted_from, moved_by])
def test_positions_behind_a_past_are_causal_too(positions: Any, new: Any) -> None:
    def write(b: Body, q: Any, k: Any, v: Any, past: Any) -> Any:
        before, rows = (length_of(x) for x in (past, q))
        row = b(op.expand_dims(positions(b, before, rows), [1]))
        column = b(op.expand_dims(b(op.arange(0, before + rows, 1, "int64")), [0]))
        k, v = (b(op.concat([past, x], 1)) for x in (k, v))
        mask = additive(b, b(op.greater(column, row)))
        return weighted(b, b(op.add(scores(b, q, k), mask)), v)

    def expected(b: Body, q: Any, k: Any, v: Any, past: Any) -> Any:
        k, v = (b(op.concat([past, x], 1)) for x in (k, v))
        return fused(scale=1, causal=True)(b, q, k, v)

    inputs = {name: ["b", new, 6, 16] for name in "qkv"}
    check(write, expected, {**inputs, "past": ["b", "p", 6, 16]})


def test_a_causal_attention_may_have_a_mask_besides() -> None:
    def write(b: Body, q: Any, k: Any, v: Any, mask: Any) -> Any:
        both = b(op.add(scores(b, q, k), additive(b, future(b, length_of(q)))))
        return weighted(b, b(op.add(both, mask)), v)

    def expected(b: Body, q: Any, k: Any, v: Any, mask: Any) -> Any:
        return fused(scale=1, causal=True)(b, q, k, v, mask)

    check(write, expected, {**SQUARE, "mask": ["b", 1, 1, "s"]})


def weak(b: Body, length: Any) -> Any:
    return additive(b, future(b, length), -1e4)


def infinite_product(b: Body, length: Any) -> Any:
    return additive(b, future(b, length), -np.inf)  # NaN on the diagonal and below


def the_past(b: Body, length: Any) -> Any:
    row, column = rows_and_columns(b, length)
    return additive(b, b(op.less(column, row)))


def itself_too(b: Body, length: Any) -> Any:
    row, column = rows_and_columns(b, length)
    return additive(b, b(op.greater_equal(column, row)))


def of_rows(b: Body, length: Any) -> Any:
    row, column = rows_and_columns(b, length)
    return additive(b, b(op.greater(row, column)))


def late(b: Body, length: Any) -> Any:
    row, _ = rows_and_columns(b, length)
    column = b(op.expand_dims(b(op.arange(1, length + 1, 1, "int64")), [0]))
    return additive(b, b(op.greater(column, row)))


@pytest.mark.parametrize("make", [weak, infinite_product, the_past, itself_too, of_rows, late])
def test_any_other_comparison_is_a_mask(make: Any) -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        return weighted(b, b(op.add(scores(b, q, k), make(b, length_of(q)))), v)

    def expected(b: Body, q: Any, k: Any, v: Any) -> Any:
        mask = make(b, length_of(q))
        mask = b(op.reshape(mask, [1, 1, *mask.ty.shape.values]))
        return fused(scale=1)(b, q, k, v, mask)

    check(write, expected, SQUARE)


def another_axis(b: Body, q: Any, k: Any, v: Any) -> Any:
    y = b(op.matmul(b(op.nn.softmax(scores(b, q, k), 2)), heads_first(b, v)))
    return b(op.permute_dims(y, [0, 2, 1, 3]))


def scaled_mask(b: Body, q: Any, k: Any, v: Any) -> Any:
    masked = b(op.add(scores(b, q, k), additive(b, future(b, length_of(q)))))
    return weighted(b, b(op.multiply(masked, number(0.25))), v)


def two_masks(b: Body, q: Any, k: Any, v: Any) -> Any:
    masked = b(op.add(scores(b, q, k), weak(b, length_of(q))))
    return weighted(b, b(op.add(masked, weak(b, length_of(q)))), v)


def scores_read_twice(b: Body, q: Any, k: Any, v: Any) -> Any:
    found = scores(b, q, k)
    return b(op.add(weighted(b, found, v), b(op.sum(found))))


def weights_read_twice(b: Body, q: Any, k: Any, v: Any) -> Any:
    weights = b(op.nn.softmax(scores(b, q, k), -1))
    return b(op.add(b(op.matmul(weights, heads_first(b, v))), b(op.sum(weights))))


def learned_temperature(b: Body, q: Any, k: Any, v: Any) -> Any:
    return weighted(b, b(op.multiply(scores(b, q, k), b.weight("t", 6, 1, 1))), v)


def one_key_for_all_queries(b: Body, q: Any, k: Any, v: Any) -> Any:
    k = b(op.sum(k, axis=[0], keepdims=True))
    return weighted(b, scores(b, q, k), v)


def where_of_a_weak_number(b: Body, q: Any, k: Any, v: Any) -> Any:
    row, column = rows_and_columns(b, length_of(q))
    seen = b(op.less_equal(column, row))
    return weighted(b, b(op.where(seen, scores(b, q, k), number(-1e4))), v)


@pytest.mark.parametrize(
    "write",
    [
        another_axis,
        scaled_mask,
        two_masks,
        scores_read_twice,
        weights_read_twice,
        learned_temperature,
        one_key_for_all_queries,
        where_of_a_weak_number,
    ],
)
def test_left_alone(write: Any) -> None:
    before = model_of(SQUARE, write)
    same_ir(FuseAttention()(before).module, before)


def test_interleaved_heads_are_no_repeat() -> None:
    """(0, 1, 0, 1, ..) is not (0, 0, .., 1, 1, ..): tiled heads stay as they are."""

    def tiled(b: Body, x: Any) -> Any:
        batch, heads, length, depth = x.ty.shape.values
        wide = b(op.expand_dims(x, [1]))
        wide = b(op.broadcast_to(wide, relax.ShapeExpr([batch, 3, heads, length, depth])))
        return b(op.reshape(wide, [batch, heads * 3, length, depth]))

    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        k = b(op.permute_dims(tiled(b, heads_first(b, k)), [0, 1, 3, 2]))
        weights = b(op.nn.softmax(b(op.matmul(heads_first(b, q), k)), -1))
        y = b(op.matmul(weights, tiled(b, heads_first(b, v))))
        return b(op.permute_dims(y, [0, 2, 1, 3]))

    def expected(b: Body, q: Any, k: Any, v: Any) -> Any:
        k, v = (tiled(b, heads_first(b, x)) for x in (k, v))
        return fused(scale=1, layouts=["BSHD", "BHSD", "BHSD"])(b, q, k, v)

    inputs = {"q": ["b", "s", 6, 16], "k": ["b", "s", 2, 16], "v": ["b", "s", 2, 16]}
    check(write, expected, inputs)


def test_the_layers_say_what_became_of_them() -> None:
    def write(b: Body, q: Any, k: Any, v: Any) -> Any:
        for name in ("scores", "values", "other"):
            b.layer(name, reason="two activations")
        y = scaled_scores(b, q, k, v)
        return b(op.matmul(y, b(op.permute_dims(y, [0, 1, 3, 2]))))

    layers = FuseAttention()(model_of(INPUTS, write)).layers
    assert [layer.reason for layer in layers.values()] == [
        "two activations; part of a fused attention",
        "two activations; part of a fused attention",
        "two activations",
    ]
