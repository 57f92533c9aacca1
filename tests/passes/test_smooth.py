from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import calls
from lbcompiler.ir.smoothing import Smoothing
from lbcompiler.passes import PREPARE, FuseLinear, Smooth
from lbcompiler.passes.smooth import can_fold
from lbcompiler.pipeline import run
from tests.passes.build import Body, model_of, same_ir
from tests.targets.cpu.test_sources import run as run_model

op = relax.op
EPSILON = float(np.float32(1e-5))
SHAPE: dict[str, Any] = {"x": [2, 5, 64]}
TINY_LM = Path(__file__).parents[2] / "models" / "tiny_lm.onnx"


def dense(b: Body, x: Any, name: str, n: int = 64, k: int = 64, *bias: Any) -> Any:
    return b(ops.dense(x, b.weight(name, n, k), *bias, layer=b.layer(name, shape=(n, k))))


def rms(b: Body, x: Any) -> Any:
    return b(op.nn.rms_norm(x, b.weight("gain", 64), [-1], EPSILON))


def layer_norm(b: Body, x: Any) -> Any:
    return b(op.nn.layer_norm(x, b.weight("gain", 64), b.weight("beta", 64), [-1], EPSILON))


def two_readers(b: Body, x: Any, norm: Callable[..., Any] = rms) -> Any:
    y = norm(b, x)
    q = dense(b, y, "q")
    return b(op.add(q, dense(b, y, "k", 64, 64, b.weight("bias", 64))))


def chain(b: Body, x: Any) -> Any:
    return dense(b, b(op.nn.relu(dense(b, x, "up", 64, 64, b.weight("bias", 64)))), "down")


def straight(b: Body, x: Any) -> Any:
    return dense(b, dense(b, x, "up"), "down")


def gated(b: Body, x: Any) -> Any:
    gate = b(op.nn.silu(dense(b, x, "gate")))
    return dense(b, b(op.multiply(gate, dense(b, x, "up"))), "down")


def attended(b: Body, x: Any, *, turned: bool = False, mask: bool = False) -> Any:
    """4 heads of 16 share 2 of the values, as they lie or with positions last but one."""
    q = b(op.reshape(dense(b, x, "q"), [2, 5, 4, 16]))
    k = b(op.reshape(dense(b, x, "k", 32), [2, 5, 2, 16]))
    v = b(op.reshape(dense(b, x, "v", 32), [2, 5, 2, 16]))
    v = b(op.permute_dims(v, [0, 2, 1, 3])) if turned else v
    layouts = ("BSHD", "BSHD", "BHSD" if turned else "BSHD")
    barred = [b(op.full([1, 1, 5, 5], relax.const(-1.0, "float32"), "float32"))] if mask else []
    y = b(ops.attention(q, k, v, *barred, heads=4, key_heads=2, scale=0.25, layouts=layouts))
    return dense(b, b(op.reshape(y, [2, 5, 64])), "out")


def stacked(b: Body, x: Any) -> Any:
    """q, k and v are one linear, read in place."""
    qkv = b(op.reshape(dense(b, x, "qkv", 192), [2, 5, 12, 16]))
    y = b(ops.attention(qkv, qkv, qkv, heads=4, key_heads=4, scale=0.25, first_heads=(0, 4, 8)))
    return dense(b, b(op.reshape(y, [2, 5, 64])), "out")


def windows(b: Body, x: Any) -> Any:
    shape = {"strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
    pixels = b(op.nn.relu(dense(b, b(op.reshape(x, [1, 2, 5, 64])), "first")))
    return dense(b, b(ops.im2col(pixels, kernel=[3, 3], **shape)), "conv", 8, 576)


def drawn(rows: np.ndarray, *, shift: bool) -> Smoothing:
    draw = np.random.default_rng(5)
    scale = draw.uniform(0.25, 4, rows.max() + 1).astype(np.float32)[rows]
    moved = draw.standard_normal(rows.max() + 1).astype(np.float32)[rows]
    return Smoothing(scale, moved if shift else None, "drawn")


def smoothed(model: Model, *layers: str, shift: bool = False) -> Model:
    rows = can_fold(model.module)[layers[0]].rows
    assert rows is not None
    return Smooth(dict.fromkeys(layers, drawn(rows, shift=shift)))(model)


def test_a_scale_goes_into_the_gain_of_an_rms_norm() -> None:
    def expected(b: Body, x: Any) -> Any:
        y = b(op.nn.rms_norm(x, b.weight("gain.smoothed", 64), [-1], EPSILON))
        q = b(ops.dense(y, b.weight("q.smoothed", 64, 64), layer=b.layer("q")))
        bias, w = b.weight("bias", 64), b.weight("k.smoothed", 64, 64)
        return b(op.add(q, b(ops.dense(y, w, bias, layer=b.layer("k")))))

    before = model_of(SHAPE, two_readers)
    after = smoothed(before, "q", "k")
    same_ir(after.module, model_of(SHAPE, expected))
    scale = drawn(np.arange(64), shift=False).scale
    gain, q = (before.weights[name].load() for name in ("gain", "q"))
    np.testing.assert_array_equal(after.weights["gain.smoothed"].load(), gain / scale)
    np.testing.assert_array_equal(after.weights["q.smoothed"].load(), q * scale)
    assert [after.layers[name].smoothing for name in "qk"] == ["drawn", "drawn"]


def test_a_shift_goes_into_the_offset_of_a_layer_norm_and_into_the_bias() -> None:
    def expected(b: Body, x: Any) -> Any:
        gain, beta = b.weight("gain.smoothed", 64), b.weight("beta.smoothed", 64)
        y = b(op.nn.layer_norm(x, gain, beta, [-1], EPSILON))
        w, bias = b.weight("q.smoothed", 64, 64), b.weight("smoothed.bias", 64)
        q = b(ops.dense(y, w, bias, layer=b.layer("q")))
        w, bias = b.weight("k.smoothed", 64, 64), b.weight("smoothed.bias.2", 64)
        return b(op.add(q, b(ops.dense(y, w, bias, layer=b.layer("k")))))

    before = model_of(SHAPE, lambda b, x: two_readers(b, x, layer_norm))
    after = smoothed(before, "q", "k", shift=True)
    same_ir(after.module, model_of(SHAPE, expected))


def test_a_scale_goes_into_the_rows_of_the_linear_before() -> None:
    def expected(b: Body, x: Any) -> Any:
        w, bias = b.weight("up.smoothed", 64, 64), b.weight("bias.smoothed", 64)
        y = b(op.nn.relu(b(ops.dense(x, w, bias, layer=b.layer("up")))))
        return b(ops.dense(y, b.weight("down.smoothed", 64, 64), layer=b.layer("down")))

    before = model_of(SHAPE, chain)
    after = smoothed(before, "down")
    same_ir(after.module, model_of(SHAPE, expected))
    scale = drawn(np.arange(64), shift=False).scale
    for name in ("up", "bias"):
        rows = before.weights[name].load().T / scale
        np.testing.assert_array_equal(after.weights[f"{name}.smoothed"].load(), rows.T)


def test_a_layer_whose_rows_are_scaled_is_no_value_of_the_source_any_more() -> None:
    before = model_of(SHAPE, chain)
    named = {name: replace(layer, output="value") for name, layer in before.layers.items()}
    after = smoothed(replace(before, layers=named), "down")
    assert (after.layers["up"].output, after.layers["down"].output) == ("", "value")


def test_gated_products_are_scaled_through_the_side_that_is_linear() -> None:
    after = smoothed(model_of(SHAPE, gated), "down")
    assert sorted(n for n in after.weights if "smoothed" in n) == ["down.smoothed", "up.smoothed"]


def test_heads_that_share_values_share_scales() -> None:
    folding = can_fold(model_of(SHAPE, attended).module)["out"]
    head, number = np.divmod(np.arange(64), 16)
    np.testing.assert_array_equal(folding.rows, head // 2 * 16 + number)
    assert folding.shifts


def test_values_of_a_stack_are_the_last_of_its_rows() -> None:
    folding = can_fold(model_of(SHAPE, stacked).module)["out"]
    np.testing.assert_array_equal(folding.rows, 128 + np.arange(64))


def test_a_mask_may_bar_every_value_so_no_shift_goes_through() -> None:
    folding = can_fold(model_of(SHAPE, lambda b, x: attended(b, x, mask=True)).module)["out"]
    assert folding.rows is not None
    assert not folding.shifts


def test_places_of_a_window_share_scales() -> None:
    folding = can_fold(model_of(SHAPE, windows).module)["conv"]
    np.testing.assert_array_equal(folding.rows, np.arange(576) % 64)
    assert not folding.shifts


def with_a_residual(b: Body, x: Any) -> Any:
    y = rms(b, x)
    return b(op.add(dense(b, y, "l"), y))


def of_the_input(b: Body, x: Any) -> Any:
    return dense(b, x, "l")


def of_an_activation(b: Body, x: Any) -> Any:
    return dense(b, b(op.nn.gelu(dense(b, x, "up"))), "l")


def of_a_square(b: Body, x: Any) -> Any:
    y = dense(b, x, "up")
    return dense(b, b(op.multiply(y, y)), "l")


def of_two_readers_further_up(b: Body, x: Any) -> Any:
    y = dense(b, x, "up")
    return b(op.add(dense(b, b(op.nn.relu(y)), "l"), y))


def of_a_number_a_row(b: Body, x: Any) -> Any:
    number = b(op.mean(x, axis=[2], keepdims=True))
    return dense(b, b(op.multiply(b(op.nn.silu(x)), number)), "l")


def of_another_axis(b: Body, x: Any) -> Any:
    gain = b.weight("gain", 5)
    return dense(b, b(op.nn.rms_norm(x, gain, [1], EPSILON)), "l")


def of_values_read_elsewhere(b: Body, x: Any) -> Any:
    v = b(op.reshape(dense(b, x, "v"), [2, 5, 4, 16]))
    y = b(ops.attention(v, v, v, heads=4, key_heads=4, scale=0.25))
    return dense(b, b(op.reshape(y, [2, 5, 64])), "l")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (with_a_residual, "read by others than linears"),
        (of_the_input, "an input of the model"),
        (of_an_activation, "relax.nn.gelu"),
        (of_a_square, "read by others too"),
        (of_two_readers_further_up, "read by others too"),
        (of_a_number_a_row, "silu|number a channel"),
        (of_another_axis, "a norm without constant gains"),
        (of_values_read_elsewhere, "values of its attention are read by others"),
    ],
)
def test_what_cannot_be_folded_says_why(write: Any, reason: str) -> None:
    before = model_of(SHAPE, write)
    folding = can_fold(before.module)["l"]
    assert folding.rows is None
    with pytest.raises(ConfigError, match=rf"'l' cannot be smoothed.*({reason})"):
        Smooth({"l": Smoothing(np.ones(64, np.float32))})(before)


def test_a_shift_needs_an_offset() -> None:
    with pytest.raises(ConfigError, match=r"'q' can have no shift.*scale only"):
        smoothed(model_of(SHAPE, two_readers), "q", "k", shift=True)


@pytest.mark.parametrize("alone", [True, False])
def test_linears_that_read_the_same_are_smoothed_as_one(alone: bool) -> None:
    one, other = Smoothing(np.ones(64, np.float32)), Smoothing(np.full(64, 2, np.float32))
    given = {"q": one} if alone else {"q": one, "k": other}
    with pytest.raises(ConfigError, match=r"'q', 'k' read the same input"):
        Smooth(given)(model_of(SHAPE, two_readers))


def test_scales_that_are_one_number_must_be_equal() -> None:
    given = Smoothing(np.arange(1, 65, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"'out' reads one value in several channels"):
        Smooth({"out": given})(model_of(SHAPE, attended))


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'nobody' cannot be smoothed"):
        Smooth({"nobody": Smoothing(np.ones(64, np.float32))})(model_of(SHAPE, two_readers))


def test_another_number_of_channels_is_an_error() -> None:
    given = dict.fromkeys(("q", "k"), Smoothing(np.ones(32, np.float32)))
    with pytest.raises(ConfigError, match=r"'q' reads 64 channels.*\(32,\) scales"):
        Smooth(given)(model_of(SHAPE, two_readers))


def test_left_alone_without_a_smoothing() -> None:
    before = model_of(SHAPE, two_readers)
    same_ir(Smooth({})(before).module, before)


def turned(b: Body, x: Any) -> Any:
    return attended(b, x, turned=True)


def with_layer_norm(b: Body, x: Any) -> Any:
    return two_readers(b, x, layer_norm)


def both_ways(b: Body, x: Any) -> Any:
    """`up` is smoothed itself and holds the smoothing of `down`."""
    return dense(b, dense(b, layer_norm(b, x), "up", 64, 64, b.weight("bias", 64)), "down")


@pytest.mark.parametrize(
    ("write", "groups", "shift"),
    [
        (two_readers, [["q", "k"]], False),
        (with_layer_norm, [["q", "k"]], True),
        (chain, [["down"]], False),
        (straight, [["down"]], True),
        (both_ways, [["up"], ["down"]], True),
        (gated, [["down"]], False),
        (attended, [["out"]], True),
        (turned, [["out"]], True),
        (stacked, [["out"]], True),
        (windows, [["conv"]], False),
    ],
)
def test_in_float_a_smoothing_changes_roundings_alone(
    write: Any, groups: Sequence[Sequence[str]], shift: bool
) -> None:
    before = model_of(SHAPE, write)
    foldings = can_fold(before.module)
    given = {
        layer: drawn(foldings[group[0]].rows, shift=shift) for group in groups for layer in group
    }
    x = np.random.default_rng(1).standard_normal(SHAPE["x"]).astype(np.float32)
    y, wanted = float_output(Smooth(given)(before), x), float_output(before, x)
    assert np.abs(y - wanted).max() < rounding_bound(before) * np.abs(wanted).max()


def rounding_bound(model: Model) -> float:
    """Of two ways to compute the same, relative to the largest output.

    A linear rounds by at most K + 16 halves of 2^-23 of sum |x w|, which for normal numbers is
    0.64 K where the largest of some hundred outputs is about 3 sqrt(K); an x that is moved by
    shifts as large as itself, and back, has up to three times that. Linears add up."""
    depth = max(layer.shape[1] for layer in model.layers.values())
    return 2 * len(model.layers) * 3 * (depth + 16) * 2.0**-24 * 0.64 * depth**0.5 / 3


def float_output(model: Model, *inputs: np.ndarray) -> np.ndarray:
    return run_model(FuseLinear()(model), *inputs)[0]


def test_a_decoder_is_smoothed_in_all_its_linears() -> None:
    model = run(PREPARE, import_model(TINY_LM, {}))
    foldings = can_fold(model.module)
    reasons = {f.layers: f.reason for f in foldings.values() if f.rows is None}
    assert reasons == {}
    given = {
        name: drawn(f.rows, shift=f.shifts) for name, f in foldings.items() if f.rows is not None
    }
    after = Smooth(given)(model)
    assert len(given) == sum(call.op == ops.DENSE for call in calls(after.module))
    ids = np.random.default_rng(0).integers(0, 256, (1, 16))
    y, wanted = float_output(after, ids), float_output(model, ids)
    assert np.abs(y - wanted).max() < rounding_bound(model) * np.abs(wanted).max()
