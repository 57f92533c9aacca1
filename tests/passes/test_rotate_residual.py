from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.calibration.simulator import Simulator, float_linears
from lbcompiler.errors import ConfigError
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes import OBSERVE, RotateResidual
from lbcompiler.passes.rotate_residual import stream_of
from lbcompiler.pipeline import run
from tests.passes.build import Body, model_of, same_ir

op = relax.op
EPSILON = float(np.float32(1e-5))
SHAPE: dict[str, Any] = {"x": ["b", "s", 64]}
H = Rotation(32)


def dense(b: Body, x: Any, name: str, *bias: Any, suffix: str = "", **record: Any) -> Any:
    w = b.weight(name + suffix, 64, 64)
    return b(ops.dense(x, w, *bias, layer=b.layer(name, shape=(64, 64), **record)))


def norm(b: Body, x: Any, gain: str) -> Any:
    return b(op.nn.rms_norm(x, b.weight(gain, 64), [-1], EPSILON))


def block(b: Body, x: Any) -> Any:
    s = dense(b, x, "embed", output="e")
    up = dense(b, norm(b, s, "gain"), "up", output="u")
    down = dense(b, b(op.nn.relu(up)), "down", b.weight("bias", 64), output="d")
    return dense(b, norm(b, b(op.add(s, down)), "last"), "head", output="h")


def test_who_writes_and_who_reads_the_stream_is_turned() -> None:
    def expected(b: Body, x: Any) -> Any:
        turned = f".residual_{H.name}"
        s = dense(b, x, "embed", suffix=turned)
        up = dense(b, norm(b, s, "gain.ones"), "up", suffix=turned)
        y, bias = b(op.nn.relu(up)), b.weight(f"bias.{H.name}", 64)
        down = dense(b, y, "down", bias, suffix=turned)
        return dense(b, norm(b, b(op.add(s, down)), "last.ones"), "head", suffix=turned)

    before = model_of(SHAPE, block)
    after = RotateResidual(H)(before)
    same_ir(after.module, model_of(SHAPE, expected))
    held = {name: weight.load() for name, weight in before.weights.items()}
    new = {name.split(".")[0]: after.weights[name].load() for name in after.weights if "." in name}
    np.testing.assert_array_equal(new["gain"], 1)
    np.testing.assert_array_equal(new["up"], H.apply(held["up"] * held["gain"]))
    np.testing.assert_array_equal(new["down"], H.apply(held["down"].T).T)
    np.testing.assert_array_equal(new["bias"], H.apply(held["bias"]))
    said = {name: layer.output for name, layer in after.layers.items()}
    assert said == {"embed": "", "up": "u", "down": "", "head": "h"}


def test_a_model_computes_the_same() -> None:
    """tiny_lm, embedding included: float32 sums in another order, and no more."""
    model = run(OBSERVE, import_model("models/tiny_lm.onnx", {}))
    ids = np.load("models/tiny_lm_sample.npz")["input_ids"][:2]
    logits = []
    for one in (model, RotateResidual(H)(model)):
        simulator = Simulator(one)
        (y,) = simulator.run({"input_ids": ids}, float_linears(simulator)).values()
        logits.append(y.copy())
    # some 30 sums in a row of up to 416 float32 each: 30 sqrt(416) 2^-24 of the largest, doubled
    bound = 2 * 30 * 416**0.5 * 2.0**-24 * np.abs(logits[0]).max()
    assert np.abs(logits[1] - logits[0]).max() < bound
    assert len(stream_of(model.module).layers()) == 4 * 7 + 1


def read_elsewhere(b: Body, x: Any) -> Any:
    s = dense(b, x, "embed")
    return b(op.add(b(op.nn.silu(s)), dense(b, norm(b, s, "gain"), "up")))


def returned(b: Body, x: Any) -> Any:
    s = dense(b, x, "embed")
    return b(op.add(s, dense(b, norm(b, s, "gain"), "up")))


def from_an_input(b: Body, x: Any) -> Any:
    return dense(b, norm(b, x, "gain"), "up")


def normed_for_others(b: Body, x: Any) -> Any:
    n = norm(b, dense(b, x, "embed"), "gain")
    return b(op.multiply(n, dense(b, n, "up")))


def without_norms(b: Body, x: Any) -> Any:
    return dense(b, x, "up")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (read_elsewhere, "relax.nn.silu reads it"),
        (returned, "returns it"),
        (from_an_input, "begins with an input"),
        (normed_for_others, "read by others than linears"),
        (without_norms, "has no RMS norm"),
    ],
)
def test_what_cannot_be_rotated_says_why(write: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        RotateResidual(H)(model_of(SHAPE, write))


def test_a_rotation_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(ConfigError, match="64 channels, which are no whole blocks"):
        RotateResidual(replace(H, size=128))(model_of(SHAPE, block))
