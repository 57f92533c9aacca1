from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import constant_of
from lbcompiler.ir.rewrite import calls
from lbcompiler.passes import FoldBatchNorm
from tests.passes.build import Body, model_of, same_ir

GAIN, SHIFT, MEAN, VARIANCE = (
    np.random.default_rng(1).uniform(0.5, 2, (4, 8)).astype(np.float32)[i] for i in range(4)
)
EPSILON = 1e-3


def normalized(b: Body, x: Any, twice: bool = False) -> Any:
    y = b(ops.conv(x, b.weight("w", 8, 4, 3, 3), layer=b.layer("l", "Conv")))
    statistics = [relax.const(s) for s in (GAIN, SHIFT, MEAN, VARIANCE)]
    out = b(relax.op.nn.batch_norm(y, *statistics, axis=1, epsilon=EPSILON, training=False))
    normal = b(relax.TupleGetItem(out, 0))
    return b(relax.op.add(normal, y)) if twice else normal


def test_the_factor_goes_into_the_weight_and_the_rest_into_the_bias() -> None:
    before = model_of({"x": [1, 4, 9, 9]}, normalized)
    after = FoldBatchNorm()(before)
    (conv,) = [call for call in calls(after.module) if call.op == ops.CONV]
    factor = GAIN / np.sqrt(VARIANCE + EPSILON)
    weight = after.weights["w.folded"].load()
    np.testing.assert_allclose(
        weight, before.weights["w"].load() * factor[:, None, None, None], 1e-6
    )
    np.testing.assert_allclose(constant_of(conv.args[2], {}), SHIFT - MEAN * factor, 1e-5)
    assert not [call for call in calls(after.module) if call.op.name == "relax.nn.batch_norm"]


def test_left_alone_where_the_convolution_is_read_again() -> None:
    before = model_of({"x": [1, 4, 9, 9]}, lambda b, x: normalized(b, x, twice=True))
    same_ir(FoldBatchNorm()(before).module, before)


@pytest.mark.parametrize("axis", [3])
def test_left_alone_on_another_axis(axis: int) -> None:
    def write(b: Body, x: Any) -> Any:
        statistics = [relax.const(s[:7]) for s in (GAIN, SHIFT, MEAN, VARIANCE)]
        y = b(ops.conv(x, b.weight("w", 8, 4, 3, 3), layer=b.layer("l", "Conv")))
        out = b(relax.op.nn.batch_norm(y, *statistics, axis=axis, training=False))
        return b(relax.TupleGetItem(out, 0))

    before = model_of({"x": [1, 4, 9, 9]}, write)
    same_ir(FoldBatchNorm()(before).module, before)
