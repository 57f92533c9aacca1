from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.formats import FORMATS, BlockFormat, Quantized
from lbcompiler.ir import ops
from lbcompiler.passes import FuseLinear, PackWeights, QuantizeWeights
from tests.passes.build import Body, model_of

NVFP4 = FORMATS["nvfp4"]


@dataclass(frozen=True)
class Kernel:
    """Packs by reversing, which is easy to see."""

    weight: BlockFormat | None

    @property
    def name(self) -> str:
        return "reversed" if self.weight else "reversed_float"

    @property
    def packing(self) -> str:
        return "back_to_front"

    def packed_specs(self, n: int, k: int) -> list[Any]:
        if self.weight is None:
            return [((k, n), "float32")]
        return [((k, n), "uint8"), ((self.weight.blocks(k), n), "uint8"), ((), "float32")]

    def pack(self, weight: Any) -> tuple[Any, ...]:
        if not isinstance(weight, Quantized):
            return (weight.T,)
        return (weight.codes.T, weight.scales.T, weight.tensor_scale)


def packed(fmt: str) -> Any:
    def write(b: Body, x: Any) -> Any:
        w = b.weight("w", 8, 64)
        layers = [b.layer(name, weight_format=fmt, scale_rule="absmax") for name in ("q", "k")]
        return b(relax.op.add(*[b(ops.dense(x, w, layer=layer)) for layer in layers]))

    model = FuseLinear()(QuantizeWeights()(model_of({"x": ["m", 64]}, write)))
    return model, PackWeights(lambda weight, act: Kernel(weight))(model)


def test_the_layer_reads_the_packed_parts_and_knows_its_kernel() -> None:
    before, after = packed("nvfp4")
    expected = NVFP4.quantize(before.weights["w"].load(), "absmax")
    layer = after.layers["q"]
    assert layer.kernel == "reversed"
    parts = [after.weights[name].load() for name in layer.weights]
    np.testing.assert_array_equal(parts[0], expected.codes.T)
    np.testing.assert_array_equal(parts[1], expected.scales.T)
    np.testing.assert_array_equal(parts[2], expected.tensor_scale)


def test_a_weight_of_two_layers_is_packed_once() -> None:
    _, after = packed("nvfp4")
    assert after.layers["q"].weights == after.layers["k"].weights


def test_a_float_weight_is_packed_too() -> None:
    before, after = packed("none")
    (name,) = after.layers["q"].weights
    assert name == "w.back_to_front.0"
    np.testing.assert_array_equal(after.weights[name].load(), before.weights["w"].load().T)


def test_nothing_is_packed_before_it_is_asked_for() -> None:
    class Unasked(Kernel):
        def pack(self, weight: Any) -> tuple[Any, ...]:
            pytest.fail("packed while compiling")

    model, _ = packed("nvfp4")
    PackWeights(lambda weight, act: Unasked(weight))(model)
