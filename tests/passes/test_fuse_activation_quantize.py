from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.formats import FORMATS
from lbcompiler.ir import ops
from lbcompiler.ir.model import Weight
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rewrite import calls
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes import FuseActivationQuantize
from tests.passes.build import Body, model_of, same_ir

op = relax.op
MXINT8 = FORMATS["mxint8"]
ROTATION = Rotation(32, seed=2)
SHAPE: dict[str, Any] = {"x": ["b", "s", 64], "y": ["b", "s", 64]}


def linear(b: Body, parts: Any) -> Any:
    """What reads a quantized activation: its two parts, a quantized weight."""
    codes, scales = (b(relax.TupleGetItem(parts, i)) for i in range(2))
    shapes = {"codes": (32, 64), "scales": (32, 2)}
    b.weights |= {name: Weight.of(np.zeros(shape, np.uint8)) for name, shape in shapes.items()}
    b.layer("fc")
    weight = [b(ops.weight(name, shape, "uint8")) for name, shape in shapes.items()]
    return b(
        ops.linear(
            [codes, scales], weight, layer="fc", n=32, weight_format=MXINT8, act_format=MXINT8
        )
    )


def quantized(b: Body, row: Any) -> Any:
    return linear(b, b(ops.quantize(row, fmt=MXINT8, scale_rule="rceil")))


def fused(b: Body, *operands: Any, **prologue: Any) -> Any:
    return b(ops.fused_quantize(operands, Prologue(**prologue), fmt=MXINT8, scale_rule="rceil"))


def layer_norm(b: Body, x: Any, **options: Any) -> Any:
    gains = [b.weight("gamma", 64), b.weight("beta", 64)]
    return b(op.nn.layer_norm(x, *gains, **{"axes": [-1], "epsilon": 1e-12} | options))


def rms_norm(b: Body, x: Any) -> Any:
    return b(op.nn.rms_norm(x, b.weight("gamma", 64), [-1], 1e-5))


LAYER_NORM: dict[str, Any] = {"norm": "layer_norm", "epsilon": 1e-12}
RMS_NORM: dict[str, Any] = {"norm": "rms_norm", "epsilon": 1e-5}


def test_a_norm_before_a_quantize_runs_with_it() -> None:
    def expected(b: Body, x: Any, _: Any) -> Any:
        return linear(b, fused(b, x, b.weight("gamma", 64), **RMS_NORM))

    before = model_of(SHAPE, lambda b, x, _: quantized(b, rms_norm(b, x)))
    same_ir(FuseActivationQuantize()(before).module, model_of(SHAPE, expected))


def test_a_rotation_runs_with_the_quantize_and_what_is_before_it() -> None:
    def write(b: Body, x: Any, _: Any) -> Any:
        return quantized(b, b(ops.hadamard(rms_norm(b, x), ROTATION)))

    def expected(b: Body, x: Any, _: Any) -> Any:
        return linear(b, fused(b, x, b.weight("gamma", 64), rotation=ROTATION, **RMS_NORM))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_rotation_alone_runs_with_the_quantize() -> None:
    def write(b: Body, x: Any, _: Any) -> Any:
        return quantized(b, b(ops.hadamard(x, ROTATION)))

    def expected(b: Body, x: Any, _: Any) -> Any:
        return linear(b, fused(b, x, rotation=ROTATION))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_rotation_has_a_place_for_a_costly_row() -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        product = b(op.multiply(b(op.nn.silu(x)), y))
        return quantized(b, b(ops.hadamard(product, ROTATION)))

    def expected(b: Body, x: Any, y: Any) -> Any:
        call = fused(b, x, y, activation="silu", combine="multiply", rotation=ROTATION)
        return linear(b, call)

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_two_rotations_of_one_row_compute_it_once() -> None:
    def write(b: Body, x: Any, _: Any) -> Any:
        row = rms_norm(b, x)
        turned = [b(ops.hadamard(row, rotation)) for rotation in (ROTATION, Rotation(16))]
        return b(relax.Tuple([quantized(b, rows) for rows in turned]))

    def expected(b: Body, x: Any, _: Any) -> Any:
        first = fused(b, x, b.weight("gamma", 64), rotation=ROTATION, keeps_row=True, **RMS_NORM)
        row = b(relax.TupleGetItem(first, 2))
        y = linear(b, first)
        return b(relax.Tuple([y, linear(b, fused(b, row, rotation=Rotation(16)))]))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_rotated_row_that_others_read_is_rotated_for_them_too() -> None:
    def write(b: Body, x: Any, _: Any) -> Any:
        turned = b(ops.hadamard(rms_norm(b, x), ROTATION))
        return b(relax.Tuple([quantized(b, turned), turned]))

    def expected(b: Body, x: Any, _: Any) -> Any:
        call = fused(b, x, b.weight("gamma", 64), rotation=ROTATION, keeps_row=True, **RMS_NORM)
        turned = b(ops.hadamard(b(relax.TupleGetItem(call, 2)), ROTATION))
        return b(relax.Tuple([linear(b, call), turned]))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_residual_behind_the_norm_reads_its_row_from_the_call() -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        row = layer_norm(b, b(op.add(x, y)))
        return b(relax.Tuple([quantized(b, row), row]))

    def expected(b: Body, x: Any, y: Any) -> Any:
        gains = [b.weight("gamma", 64), b.weight("beta", 64)]
        call = fused(b, x, y, *gains, combine="add", keeps_row=True, **LAYER_NORM)
        row = b(relax.TupleGetItem(call, 2))
        return b(relax.Tuple([linear(b, call), row]))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_residual_before_the_norm_reads_the_sum_from_the_call() -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        total = b(op.add(x, y))
        halved = b(op.nn.relu(total))  # reads the sum before the norm does
        return b(relax.Tuple([quantized(b, rms_norm(b, total)), halved]))

    def expected(b: Body, x: Any, y: Any) -> Any:
        gamma = b.weight("gamma", 64)
        call = fused(b, x, y, gamma, combine="add", keeps_sum=True, **RMS_NORM)
        halved = b(op.nn.relu(b(relax.TupleGetItem(call, 2))))
        return b(relax.Tuple([linear(b, call), halved]))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_gated_product_runs_with_its_activation(swapped: bool) -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        factors = [b(op.nn.silu(x)), y]
        return quantized(b, b(op.multiply(*(reversed(factors) if swapped else factors))))

    def expected(b: Body, x: Any, y: Any) -> Any:
        return linear(b, fused(b, x, y, activation="silu", combine="multiply", keeps_row=True))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_an_activation_that_others_read_is_computed_once() -> None:
    def write(b: Body, x: Any, _: Any) -> Any:
        row = b(op.nn.gelu(x))
        return b(relax.Tuple([quantized(b, row), row]))

    def expected(b: Body, x: Any, _: Any) -> Any:
        call = fused(b, x, activation="gelu", keeps_row=True)
        row = b(relax.TupleGetItem(call, 2))
        return b(relax.Tuple([linear(b, call), row]))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_sum_of_two_shapes_stays_and_the_norm_behind_it_is_fused() -> None:
    shape: dict[str, Any] = {"x": ["b", "s", 64], "y": [1, "s", 64]}

    def write(b: Body, x: Any, y: Any) -> Any:
        return quantized(b, rms_norm(b, b(op.add(x, y))))

    def expected(b: Body, x: Any, y: Any) -> Any:
        total = b(op.add(x, y))
        return linear(b, fused(b, total, b.weight("gamma", 64), **RMS_NORM))

    after = FuseActivationQuantize()(model_of(shape, write))
    same_ir(after.module, model_of(shape, expected))


def test_two_norms_of_one_sum_share_it() -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        total = b(op.add(x, y))
        return b(op.add(quantized(b, rms_norm(b, total)), quantized(b, rms_norm(b, total))))

    def expected(b: Body, x: Any, y: Any) -> Any:
        gamma = b.weight("gamma", 64)
        first = fused(b, x, y, gamma, combine="add", keeps_sum=True, **RMS_NORM)
        total = b(relax.TupleGetItem(first, 2))
        second = fused(b, total, gamma, **RMS_NORM)
        return b(op.add(linear(b, first), linear(b, second)))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    assert _names(after) == _names(model_of(SHAPE, expected))


def _names(model: Any) -> list[str]:
    return sorted(call.op.name for call in calls(model.module) if call.op != ops.WEIGHT)


def plain(b: Body, x: Any, _: Any) -> Any:
    return quantized(b, x)


def of_a_product_with_a_number(b: Body, x: Any, _: Any) -> Any:
    return quantized(b, b(op.multiply(x, relax.const(np.float32(2)))))


def of_a_norm_with_a_computed_gain(b: Body, x: Any, y: Any) -> Any:
    gain = b(op.sum(y, axis=[0, 1]))
    return quantized(b, b(op.nn.rms_norm(x, gain, [-1], 1e-5)))


def of_a_norm_without_an_offset(b: Body, x: Any, _: Any) -> Any:
    return quantized(b, layer_norm(b, x, center=False))


def of_a_difference(b: Body, x: Any, y: Any) -> Any:
    return quantized(b, b(op.subtract(x, y)))


@pytest.mark.parametrize(
    "write",
    [
        plain,
        of_a_product_with_a_number,
        of_a_norm_with_a_computed_gain,
        of_a_norm_without_an_offset,
        of_a_difference,
    ],
)
def test_left_alone(write: Any) -> None:
    before = model_of(SHAPE, write)
    same_ir(FuseActivationQuantize()(before).module, before)


def test_left_alone_a_norm_over_other_axes() -> None:
    def write(b: Body, x: Any) -> Any:
        gains = [b.weight(name, 64, 64) for name in ("gamma", "beta")]
        return quantized(b, b(op.nn.layer_norm(x, *gains, axes=[0, 1], epsilon=1e-5)))

    before = model_of({"x": [64, 64]}, write)
    same_ir(FuseActivationQuantize()(before).module, before)


def test_the_product_before_a_norm_is_not_taken_into_it() -> None:
    def write(b: Body, x: Any, y: Any) -> Any:
        return quantized(b, rms_norm(b, b(op.multiply(x, y))))

    def expected(b: Body, x: Any, y: Any) -> Any:
        product = b(op.multiply(x, y))
        return linear(b, fused(b, product, b.weight("gamma", 64), **RMS_NORM))

    after = FuseActivationQuantize()(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))
