from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Weight
from lbcompiler.passes import FoldConstants
from tests.passes.build import Body, model_of, same_ir

FACTOR = np.float32(0.5)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda w: relax.op.permute_dims(w, [1, 0]), lambda a: a.T),
        (lambda w: relax.op.permute_dims(w), lambda a: a.T),
        (lambda w: relax.op.reshape(w, [4, 8, 16]), lambda a: a.reshape(4, 8, 16)),
        (lambda w: relax.op.expand_dims(w, 1), lambda a: a[:, None]),
        (lambda w: relax.op.astype(w, "float16"), lambda a: a.astype(np.float16)),
        (lambda w: relax.op.multiply(w, relax.const(FACTOR)), lambda a: a * FACTOR),
        (lambda w: relax.op.subtract(relax.const(FACTOR), w), lambda a: FACTOR - a),
    ],
)
def test_an_op_on_a_weight_alone_becomes_a_weight(change: Any, same: Any) -> None:
    before = model_of({"x": [1]}, lambda b, x: b(change(b.weight("w", 8, 64))))
    after = FoldConstants()(before)
    (name,) = after.weights.keys() - {"w"}
    expected = same(before.weights["w"].load())
    folded = after.weights[name]
    assert (folded.shape, folded.dtype) == (expected.shape, str(expected.dtype))
    np.testing.assert_array_equal(folded.load(), expected)


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    before = model_of({"x": [1]}, lambda b, x: b(relax.op.permute_dims(b.weight("w", 8, 64))))

    def fail() -> Any:
        raise AssertionError("loaded while compiling")

    before.weights["w"] = Weight((8, 64), "float32", fail)
    FoldConstants()(before)


def input_involved(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b.weight("w", 8, 64), x))


def constants_only(b: Body, x: Any) -> Any:
    return b(relax.op.add(x, b(relax.op.add(relax.const(FACTOR), relax.const(FACTOR)))))


@pytest.mark.parametrize("write", [input_involved, constants_only])
def test_left_alone(write: Any) -> None:
    before = model_of({"x": ["m", 64] if write is constants_only else [1, 64]}, write)
    same_ir(FoldConstants()(before).module, before)


def test_a_chain_folds_to_one_weight() -> None:
    def write(b: Body, x: Any) -> Any:
        w = b(relax.op.permute_dims(b(relax.op.reshape(b.weight("w", 8, 64), [64, 8]))))
        return b(ops.dense(x, w, layer=b.layer("l")))

    before = model_of({"x": [1, 64]}, write)
    after = FoldConstants()(before)
    expected = before.weights["w"].load().reshape(64, 8).T
    np.testing.assert_array_equal(after.weights["w.reshape.permute_dims"].load(), expected)
