import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.outliers import Split
from lbcompiler.passes import (
    FuseActivationQuantize,
    FuseLinear,
    InsertQDQ,
    QuantizeWeights,
    SelectFormats,
    SplitOutliers,
)
from lbcompiler.passes.split_outliers import arrangements, can_reorder
from tests.passes.build import Body, model_of, same_ir
from tests.targets.cpu.test_sources import run as run_model

op = relax.op
EPSILON = float(np.float32(1e-5))
SHAPE: dict[str, Any] = {"x": ["b", "s", 128]}
MXINT8 = Split((70, 40), "mxint8")


def dense(b: Body, x: Any, name: str, *bias: Any) -> Any:
    return b(ops.dense(x, b.weight(name, 128, 128), *bias, layer=layer(b, name)))


def layer(b: Body, name: str, k: int = 128) -> str:
    return b.layer(name, shape=(128, k), output="value")


def norm(b: Body, x: Any) -> Any:
    return b(op.nn.rms_norm(x, b.weight("gain", 128), [-1], EPSILON))


def two_readers(b: Body, x: Any) -> Any:
    y = norm(b, x)
    return b(op.add(dense(b, y, "q"), dense(b, y, "k", b.weight("bias", 128))))


def gated(b: Body, x: Any) -> Any:
    gate = b(op.nn.silu(dense(b, x, "gate")))
    up = dense(b, x, "up", b.weight("bias", 128))
    return dense(b, b(op.multiply(gate, up)), "down")


def straight(b: Body, x: Any) -> Any:
    return dense(b, dense(b, norm(b, x), "up"), "down")


def test_blocks_of_outliers_are_cut_out_where_they_stand() -> None:
    def expected(b: Body, x: Any) -> Any:
        y = b(op.nn.rms_norm(x, b.weight("gain", 128), [-1], EPSILON))
        w = b.weight("q.rest", 128, 128)
        rest = b(ops.dense(y, w, layer=layer(b, "q")))
        cut = b(op.strided_slice(y, [2], [32], [96]))
        w = b.weight("q.outliers", 128, 64)
        second = b(ops.dense(cut, w, layer=layer(b, "q.outliers")))
        q = b(op.add(rest, second))
        bias, w = b.weight("bias", 128), b.weight("k", 128, 128)
        return b(op.add(q, b(ops.dense(y, w, bias, layer=layer(b, "k")))))

    before = model_of(SHAPE, two_readers)
    after = SplitOutliers({"q": MXINT8})(before)
    same_ir(after.module, model_of(SHAPE, expected))
    w = before.weights["q"].load()
    rest, outliers = (after.weights[f"q.{part}"].load() for part in ("rest", "outliers"))
    np.testing.assert_array_equal(outliers, w[:, 32:96])
    np.testing.assert_array_equal(rest[:, 32:96], 0)
    np.testing.assert_array_equal(np.delete(rest, np.s_[32:96], 1), np.delete(w, np.s_[32:96], 1))


def test_blocks_apart_are_slices_next_to_one_another() -> None:
    after = SplitOutliers({"q": Split((5, 127), "mxint8")})(model_of(SHAPE, two_readers))
    assert "concat" in after.module["main"].script()
    assert after.weights["q.outliers"].shape == (128, 64)


def test_linears_that_read_the_same_share_the_slice() -> None:
    after = SplitOutliers({"q": MXINT8, "k": MXINT8})(model_of(SHAPE, two_readers))
    assert after.module["main"].script().count("strided_slice") == 1


def test_outliers_stand_last_where_the_linears_before_can_be_reordered() -> None:
    def expected(b: Body, x: Any) -> Any:
        w = b.weight("gate.reordered", 128, 128)
        gate = b(op.nn.silu(b(ops.dense(x, w, layer=layer(b, "gate")))))
        w, bias = b.weight("up.reordered", 128, 128), b.weight("bias.reordered", 128)
        up = b(ops.dense(x, w, bias, layer=layer(b, "up")))
        y = b(op.multiply(gate, up))
        rest = b(ops.dense(y, b.weight("down.rest", 128, 128), layer=layer(b, "down")))
        cut = b(op.strided_slice(y, [2], [96], [128]))
        w = b.weight("down.outliers", 128, 32)
        return b(op.add(rest, b(ops.dense(cut, w, layer=layer(b, "down.outliers")))))

    before = model_of(SHAPE, gated)
    after = SplitOutliers({"down": MXINT8})(before)
    same_ir(after.module, model_of(SHAPE, expected))
    order = [*np.delete(np.arange(128), [40, 70]), 40, 70]
    for name in ("gate", "up", "bias"):
        held = before.weights[name].load()
        np.testing.assert_array_equal(after.weights[f"{name}.reordered"].load(), held[order])
    w = before.weights["down"].load()[:, order]
    np.testing.assert_array_equal(after.weights["down.outliers"].load(), w[:, 96:])
    assert {name: held.output for name, held in after.layers.items()} == dict.fromkeys(
        ("gate", "up", "down", "down.outliers"), ""
    )


def test_nothing_is_reordered_that_would_take_as_many_blocks() -> None:
    after = SplitOutliers({"down": Split((40, 50), "mxint8")})(model_of(SHAPE, gated))
    assert not [name for name in after.weights if name.endswith("reordered")]
    assert after.layers["down"].outliers == 32


def test_arrangements_tell_what_becomes_of_the_weights() -> None:
    before = model_of(SHAPE, gated)
    found = arrangements(before.module, {"down": MXINT8})["down"]
    after = SplitOutliers({"down": MXINT8})(before)
    w = before.weights["down"].load()
    np.testing.assert_array_equal(found.rest(w), after.weights["down.rest"].load())
    np.testing.assert_array_equal(found.outliers(w), after.weights["down.outliers"].load())


def test_records_say_what_went_out_and_in_which_format() -> None:
    after = SplitOutliers({"q": MXINT8, "k": replace(MXINT8, format="float32")})(
        model_of(SHAPE, two_readers)
    )
    assert list(after.layers) == ["q", "q.outliers", "k", "k.outliers"]
    assert [after.layers[name].outliers for name in after.layers] == [64, 0, 64, 0]
    after = formats("nvfp4")(after)
    said = {name: held.weight_format for name, held in after.layers.items()}
    assert said == {"q": "nvfp4", "q.outliers": "mxint8", "k": "nvfp4", "k.outliers": "none"}
    assert after.layers["k.outliers"].reason == "outlier channels of 'k' stay in float"


def formats(name: str, *include: str) -> SelectFormats:
    fmt, rule = format_named(name), format_named(name).default_rule
    return SelectFormats(fmt, fmt, rule, rule, lambda _w, _a: "", include)


def of_a_residual(b: Body, x: Any) -> Any:
    return dense(b, b(op.add(dense(b, x, "up"), x)), "l")


def of_a_norm(b: Body, x: Any) -> Any:
    return dense(b, norm(b, x), "l")


def of_a_number_a_row(b: Body, x: Any) -> Any:
    number = b(op.mean(x, axis=[2], keepdims=True))
    return dense(b, b(op.multiply(dense(b, x, "up"), number)), "l")


def of_what_is_read_elsewhere(b: Body, x: Any) -> Any:
    y = dense(b, x, "up")
    return b(op.add(dense(b, y, "l"), y))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (of_a_residual, "an input of the model|read by others too"),
        (of_a_norm, "rms_norm, whose channels have their order"),
        (of_a_number_a_row, "numbers that all channels share"),
        (of_what_is_read_elsewhere, "read by others than linears"),
    ],
)
def test_what_cannot_be_reordered_says_why_and_is_cut_where_it_stands(
    write: Any, reason: str
) -> None:
    before = model_of(SHAPE, write)
    assert re.search(reason, can_reorder(before.module)["l"])
    after = SplitOutliers({"l": MXINT8})(before)
    assert not [name for name in after.weights if name.endswith("reordered")]
    assert after.layers["l"].outliers == 64


@pytest.mark.parametrize("channels", [(), (-1,), (128,)])
def test_channels_that_are_not_there_are_an_error(channels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"'q' reads channels 0 to 127"):
        SplitOutliers({"q": Split(channels, "mxint8")})(model_of(SHAPE, two_readers))


def test_a_layer_of_outliers_only_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'q' lie in all blocks.*mxint8 as a whole"):
        SplitOutliers({"q": Split((1, 33, 65, 97), "mxint8")})(model_of(SHAPE, two_readers))


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'nobody' has no outliers"):
        SplitOutliers({"nobody": MXINT8})(model_of(SHAPE, two_readers))


def test_left_alone_without_a_split() -> None:
    before = model_of(SHAPE, two_readers)
    same_ir(SplitOutliers({})(before).module, before)


def planted(write: Any, name: str, rows: dict[int, float]) -> Model:
    """The model with some entries along the first axis of a weight `rows` times as large."""
    model = model_of(SHAPE, write)
    held = model.weights[name].load().copy()
    for row, factor in rows.items():
        held[row] *= factor
    weights = {**model.weights, name: type(model.weights[name]).of(held)}
    return replace(model, weights=weights)


CASES = [
    (two_readers, "gain", {"q": MXINT8, "k": replace(MXINT8, format="float32")}),
    (gated, "up", {"down": MXINT8}),
    (straight, "up", {"up": Split((3,), "float32"), "down": MXINT8}),
]


@pytest.mark.parametrize(("write", "source", "splits"), CASES)
def test_in_float_a_split_changes_the_order_of_sums_alone(
    write: Any, source: str, splits: dict[str, Split]
) -> None:
    before, x, wanted = loud(write, source)
    y = float_output(SplitOutliers(splits)(before), x)
    # K products of float32 and their sum, in two orders: for normal numbers 2 K 2^-24 of 0.64 K
    # where the largest outputs are about 3 sqrt(K); linears add up
    bound = len(before.layers) * 2 * 128 * 2.0**-24 * 0.64 * 128**0.5 / 3
    assert np.abs(y - wanted).max() < bound * np.abs(wanted).max()


def float_output(model: Model, *inputs: np.ndarray) -> np.ndarray:
    layers = {name: replace(held, weight_format="none") for name, held in model.layers.items()}
    return run_model(FuseLinear()(replace(model, layers=layers)), *inputs)[0]


@cache
def loud(write: Any, source: str) -> tuple[Model, np.ndarray, np.ndarray]:
    """A model with two loud channels, an input, and what it makes of it in float."""
    model = planted(write, source, {40: 50, 70: 50})
    x = np.random.default_rng(1).standard_normal((2, 3, 128)).astype(np.float32)
    return model, x, float_output(model, x)


def quantized(model: Model, fmt: str, layer: str, x: np.ndarray) -> np.ndarray:
    """With that layer and its outliers in a block format, all others in float."""
    chosen = formats(fmt, f"^{layer}$")
    steps = (chosen, QuantizeWeights(), InsertQDQ(), FuseLinear(), FuseActivationQuantize())
    for step in steps:
        model = step(model)
    return run_model(model, x)[0]


@pytest.mark.parametrize(
    "fmt",
    ["mxfp4", "nvint4", *(pytest.param(f, marks=pytest.mark.slow) for f in ("mxint4", "nvfp4"))],
)
@pytest.mark.parametrize(
    ("write", "source", "name"), [(two_readers, "gain", "q"), (gated, "up", "down")]
)
def test_a_split_lowers_the_error_of_a_model_with_outliers(
    write: Any, source: str, name: str, fmt: str
) -> None:
    before, x, wanted = loud(write, source)
    plain, split = (
        np.square(quantized(model, fmt, name, x) - wanted).sum()
        for model in (before, SplitOutliers({name: MXINT8})(before))
    )
    assert split < 0.1 * plain
