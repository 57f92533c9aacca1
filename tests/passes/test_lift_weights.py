from typing import Any

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.rewrite import calls
from lbcompiler.passes import LiftWeights
from tests.passes.build import Body, model_of


def write(b: Body, x: Any) -> Any:
    second, first = b.weight("second", 8, 64), b.weight("first", 64, 64)
    b.weight("unused", 3)
    y = b(ops.dense(x, first, layer=b.layer("a")))
    return b(relax.op.add(b(ops.dense(y, second, layer=b.layer("b"))), relax.const(1.0)))


def test_weights_become_parameters_behind_the_inputs() -> None:
    before = model_of({"x": ["m", 64]}, write)
    after = LiftWeights()(before)
    main = after.module["main"]
    shapes = [tuple(int(d) for d in p.ty.shape.values) for p in main.params[1:]]
    assert set(after.parameters) == set(after.weights) == {"first", "second"}
    assert shapes == [before.weights[name].shape for name in after.parameters]
    assert int(main.attrs["num_input"]) == 1
    assert ops.WEIGHT not in [call.op for call in calls(after.module)]


def test_a_model_without_weights() -> None:
    after = LiftWeights()(model_of({"x": ["m", 64]}, lambda b, x: b(relax.op.nn.relu(x))))
    assert after.parameters == ()
