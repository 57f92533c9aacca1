from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import calls
from lbcompiler.ir.rotation import Rotation, rotation_of
from lbcompiler.passes import FuseLinear, Rotate
from tests.passes.build import Body, model_of, same_ir
from tests.targets.cpu.test_sources import run as run_model

SHAPE: dict[str, Any] = {"x": ["b", "s", 64]}
PLAIN, SIGNED = Rotation(32), Rotation(16, seed=3)


def readers(b: Body, x: Any) -> Any:
    """q and k read x, the second with a bias; `head` reads what they make of it."""
    q = b(ops.dense(x, b.weight("q", 64, 64), layer=b.layer("q")))
    k = b(ops.dense(x, b.weight("k", 64, 64), b.weight("bias", 64), layer=b.layer("k")))
    return b(ops.dense(b(relax.op.add(q, k)), b.weight("head", 8, 64), layer=b.layer("head")))


def rotated_weight(b: Body, name: str, rotation: Rotation, outputs: int = 64) -> Any:
    return b.weight(f"{name}.{rotation.name}", outputs, 64)


def test_layers_that_read_the_same_share_one_hadamard() -> None:
    def expected(b: Body, x: Any) -> Any:
        turned = b(ops.hadamard(x, PLAIN))
        q = b(ops.dense(turned, rotated_weight(b, "q", PLAIN), layer=b.layer("q")))
        bias, w = b.weight("bias", 64), rotated_weight(b, "k", PLAIN)
        k = b(ops.dense(turned, w, bias, layer=b.layer("k")))
        return b(ops.dense(b(relax.op.add(q, k)), b.weight("head", 8, 64), layer=b.layer("head")))

    after = Rotate({"q": PLAIN, "k": PLAIN})(model_of(SHAPE, readers))
    same_ir(after.module, model_of(SHAPE, expected))
    said = {name: (layer.hadamard, layer.hadamard_seed) for name, layer in after.layers.items()}
    assert said == {"q": (32, None), "k": (32, None), "head": (0, None)}


def test_layers_with_other_rotations_have_their_own() -> None:
    after = Rotate({"q": PLAIN, "k": SIGNED})(model_of(SHAPE, readers))
    found = [rotation_of(c.attrs) for c in calls(after.module) if c.op == ops.HADAMARD]
    assert found == [PLAIN, SIGNED]
    assert after.layers["k"].hadamard_seed == 3


def test_a_weight_that_two_layers_share_is_rotated_once_for_each_rotation() -> None:
    def write(b: Body, x: Any) -> Any:
        w = b.weight("w", 64, 64)
        y = b(ops.dense(x, w, layer=b.layer("first")))
        y = b(ops.dense(y, w, layer=b.layer("second")))
        return b(ops.dense(y, w, layer=b.layer("third")))

    before = model_of(SHAPE, write)
    after = Rotate({"first": PLAIN, "second": PLAIN, "third": SIGNED})(before)
    assert sorted(after.weights) == ["w", "w.hadamard16_signs3", "w.hadamard32"]
    w = before.weights["w"].load()
    np.testing.assert_array_equal(after.weights["w.hadamard32"].load(), PLAIN.apply(w))


def test_a_hadamard_that_meets_its_inverse_is_none() -> None:
    def write(b: Body, x: Any) -> Any:
        turned = b(ops.hadamard(x, PLAIN))
        return b(ops.dense(turned, b.weight("w", 8, 64), layer=b.layer("l")))

    def expected(b: Body, x: Any) -> Any:
        return b(ops.dense(x, rotated_weight(b, "w", PLAIN, 8), layer=b.layer("l")))

    after = Rotate({"l": PLAIN})(model_of(SHAPE, write))
    same_ir(after.module, model_of(SHAPE, expected))


def test_signs_are_not_their_own_inverse() -> None:
    def write(b: Body, x: Any) -> Any:
        turned = b(ops.hadamard(x, SIGNED))
        return b(ops.dense(turned, b.weight("w", 8, 64), layer=b.layer("l")))

    after = Rotate({"l": SIGNED})(model_of(SHAPE, write))
    assert len([c for c in calls(after.module) if c.op == ops.HADAMARD]) == 2


def convolution(channels: int, kernel: int) -> Any:
    """Of kernel x kernel windows, padded all around."""

    def write(b: Body, x: Any) -> Any:
        windows = {"strides": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
        rows = b(ops.im2col(x, kernel=[kernel, kernel], **windows))
        k = kernel * kernel * channels
        return b(ops.dense(rows, b.weight("w", 8, k), layer=b.layer("conv", "Conv", (8, k))))

    return write


def test_pixels_are_rotated_once_where_blocks_lie_within_them() -> None:
    after = Rotate({"conv": PLAIN})(model_of({"x": [1, 5, 5, 32]}, convolution(32, 3)))
    names = [call.op.name for call in calls(after.module) if call.op != ops.WEIGHT]
    assert names == ["lbc.hadamard", "lbc.im2col", "lbc.dense"]


def test_windows_are_rotated_where_blocks_span_pixels() -> None:
    after = Rotate({"conv": Rotation(16)})(model_of({"x": [1, 5, 5, 24]}, convolution(24, 2)))
    names = [call.op.name for call in calls(after.module) if call.op != ops.WEIGHT]
    assert names == ["lbc.im2col", "lbc.hadamard", "lbc.dense"]


def test_left_alone_without_a_rotation() -> None:
    before = model_of(SHAPE, readers)
    same_ir(Rotate({})(before).module, before)


def test_broken_blocks_are_an_error_that_names_the_layer() -> None:
    with pytest.raises(ConfigError, match=r"'head' sums over 64 inputs.*128"):
        Rotate({"head": Rotation(128)})(model_of(SHAPE, readers))


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'nobody'.*'q', 'k', 'head'"):
        Rotate({"nobody": PLAIN})(model_of(SHAPE, readers))


def float_output(model: Model, *inputs: np.ndarray) -> np.ndarray:
    """What the model computes, all linears in float."""
    return run_model(FuseLinear()(model), *inputs)[0]


@pytest.mark.parametrize(
    ("write", "shape", "rotations"),
    [
        (readers, [3, 5, 64], {"q": PLAIN, "k": SIGNED, "head": Rotation(64)}),
        (convolution(32, 3), [1, 5, 5, 32], {"conv": SIGNED}),
        (convolution(24, 2), [1, 5, 5, 24], {"conv": Rotation(16)}),
    ],
    ids=["linears", "pixels", "windows"],
)
def test_in_float_a_rotation_changes_roundings_alone(
    write: Any, shape: list[int], rotations: dict[str, Rotation]
) -> None:
    before = model_of({"x": shape}, write)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    y, wanted = float_output(Rotate(rotations)(before), x), float_output(before, x)
    # a sum of K products rounds by K / 2^24 of the product of their norms, rotated or not, and a
    # rotation by 8 / 2^24 of each; two linears behind one another have a gain below their K
    depth = max(layer.shape[1] for layer in before.layers.values())
    scale = np.linalg.norm(x.reshape(-1, shape[-1]), axis=1).max() * depth
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2 * (depth + 16) * scale * 2.0**-24)
