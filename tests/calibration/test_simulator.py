import numpy as np
import onnxruntime
import pytest
from tvm import relax

from lbcompiler.calibration.segments import split
from lbcompiler.calibration.simulator import Simulator, float_linears
from lbcompiler.errors import ModelError
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.passes import OBSERVE
from lbcompiler.pipeline import run
from tests.passes.build import Body, model_of

TINY = "models/tiny_lm.onnx"
SAMPLE = "models/tiny_lm_sample.npz"
# float32 sums of some hundred terms in two orders, through four layers
FLOAT_DB = 100.0


@pytest.fixture(scope="module")
def tiny() -> Simulator:
    return Simulator(run(OBSERVE, import_model(TINY, {})))


def qsnr(reference: np.ndarray, y: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - y).sum()))


def test_linears_in_numpy_give_the_float_model(tiny: Simulator) -> None:
    ids = np.load(SAMPLE)["input_ids"][:2]
    expected = onnxruntime.InferenceSession(TINY).run(None, {"input_ids": ids})[0]
    (logits,) = tiny.run({"input_ids": ids}, float_linears(tiny)).values()
    assert qsnr(expected, logits) > FLOAT_DB


def test_linears_that_read_one_input_are_a_group(tiny: Simulator) -> None:
    first, second, third, fourth = tiny.groups[:4]
    assert first.layers == tuple(f"layers.0.attention.{n}" for n in ("query", "key", "value"))
    assert second.layers == ("layers.0.attention.output",)
    assert third.layers == ("layers.0.gate", "layers.0.up")
    assert fourth.layers == ("layers.0.down",)
    assert [group.k for group in (first, fourth)] == [160, 416]


def test_a_copy_of_a_run_goes_on_by_itself(tiny: Simulator) -> None:
    ids, compute = np.load(SAMPLE)["input_ids"][:1, :64], float_linears(tiny)
    (expected,) = tiny.run({"input_ids": ids}, compute).values()
    begun = tiny.start({"input_ids": ids})
    for group in tiny.groups[:5]:
        tiny.finish(begun, compute(group, tiny.reach(begun)))
    tiny.reach(begun)
    ahead = begun.copy()
    (once,) = tiny.resume(ahead, compute).values()
    once = once.copy()
    (twice,) = tiny.resume(begun, compute).values()
    np.testing.assert_array_equal(once, expected)
    np.testing.assert_array_equal(twice, expected)


def test_other_linears_change_what_follows(tiny: Simulator) -> None:
    ids, compute = np.load(SAMPLE)["input_ids"][:1, :64], float_linears(tiny)
    (expected,) = tiny.run({"input_ids": ids}, compute).values()

    def without_down(group: object, x: np.ndarray) -> dict[str, np.ndarray]:
        results = compute(group, x)  # type: ignore[arg-type]
        return {n: y * ("down" not in n) for n, y in results.items()}

    (changed,) = tiny.run({"input_ids": ids}, without_down).values()
    assert qsnr(expected, changed) < 20


def split_model(write: object) -> Model:
    return model_of({"x": ["n", 64]}, write)  # type: ignore[arg-type]


def test_values_that_need_no_linear_are_computed_first() -> None:
    def write(body: Body, x: object) -> object:
        w = body.weight("w", 64, 64)
        y = body(ops.dense(x, w, layer=body.layer("first")))
        late = body(relax.op.multiply(x, x))  # stands behind the linear, needs only x
        z = body(ops.dense(late, w, layer=body.layer("second")))
        return body(relax.op.add(y, z))

    found = split(split_model(write).module)
    assert [s.group.layers for s in found.stages] == [("first",), ("second",)]
    assert [bool(s.function) for s in found.segments] == [True, False, True]


def test_a_model_without_linears_is_one_segment() -> None:
    model = split_model(lambda body, x: body(relax.op.add(x, x)))
    simulator = Simulator(model)
    assert simulator.groups == ()
    x = np.arange(128, dtype=np.float32).reshape(2, 64)
    (y,) = simulator.run({"x": x}, float_linears(simulator)).values()
    np.testing.assert_array_equal(y, 2 * x)


def test_a_weight_that_is_computed_is_refused_by_name() -> None:
    def write(body: Body, x: object) -> object:
        w = body(relax.op.negative(body.weight("w", 64, 64)))
        return body(ops.dense(x, w, layer=body.layer("odd")))

    with pytest.raises(ModelError, match="layer 'odd'"):
        split(split_model(write).module)
