from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lbcompiler.errors import ModelError
from lbcompiler.formats import FORMATS, BlockFormat, Quantized
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model, Weight
from lbcompiler.passes import QuantizeWeights
from lbcompiler.quantizers import Problem, round_to_nearest
from tests.passes.build import Body, model_of, same_ir

BIAS_FREE = {"shape": (8, 72)}


def float_model(fmt: str, rule: str) -> Model:
    def write(b: Body, x: Any) -> Any:
        layer = b.layer("l", weight_format=fmt, scale_rule=rule, **BIAS_FREE)
        return b(ops.dense(x, b.weight("w", 8, 72), layer=layer))

    return model_of({"x": ["m", 72]}, write)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_the_weight_becomes_its_dequantized_parts(fmt: BlockFormat) -> None:
    before = float_model(fmt.name, fmt.rules[-1])
    after = QuantizeWeights()(before)
    stem = f"w.{fmt.name}.{fmt.rules[-1]}"
    names = [f"{stem}.{part}" for part in ("codes", "scales", "tensor_scale")][: fmt.parts]
    loaded = [after.weights[name].load() for name in names]
    expected = fmt.quantize(before.weights["w"].load(), fmt.rules[-1])
    for part, want in zip(
        loaded, (expected.codes, expected.scales, expected.tensor_scale), strict=False
    ):
        np.testing.assert_array_equal(part, want)

    def write(b: Body, x: Any) -> Any:
        parts = [b(ops.weight(n, after.weights[n].shape, after.weights[n].dtype)) for n in names]
        b.weights = dict(after.weights)
        return b(ops.dense(x, b(ops.dequantize(parts, fmt=fmt)), layer=b.layer("l")))

    same_ir(after.module, model_of({"x": ["m", 72]}, write))


def test_parts_are_computed_once() -> None:
    seen = []

    def spy(problem: Problem) -> Quantized:
        seen.append(problem.rule)
        return round_to_nearest(problem)

    after = QuantizeWeights(quantizer=spy)(float_model("nvfp4", "absmax"))
    for part in ("codes", "scales", "tensor_scale"):
        after.weights[f"w.nvfp4.absmax.{part}"].load()
    assert seen == ["absmax"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    before = float_model("mxfp4", "rceil")
    broken = before.weights["w"].load().copy()
    broken[3, 5] = bad
    before.weights["w"] = Weight.of(broken)
    after = QuantizeWeights()(before)
    with pytest.raises(ModelError, match=r"layer 'l' holds NaN or infinity.*--exclude"):
        after.weights["w.mxfp4.rceil.codes"].load()


def test_left_alone_a_layer_in_float() -> None:
    before = float_model("none", "none")
    before = replace(before, layers={"l": replace(before.layers["l"], weight_format="none")})
    same_ir(QuantizeWeights()(before).module, before)
