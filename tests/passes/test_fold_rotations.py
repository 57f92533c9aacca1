from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import calls
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes import PREPARE, FoldRotations, Rotate
from lbcompiler.passes.fold_rotations import Producer, producers
from lbcompiler.pipeline import run
from tests.passes.build import Body, model_of, same_ir
from tests.passes.test_rotate import float_output
from tests.passes.test_smooth import (
    SHAPE,
    TINY_LM,
    attended,
    chain,
    dense,
    gated,
    stacked,
    straight,
    two_readers,
    windows,
)

PLAIN, SIGNED = Rotation(16), Rotation(8, seed=3)
ROUNDINGS = 1e-5  # of the largest output: a few dozen float32 sums of 64 in another order


def biased(b: Body, x: Any) -> Any:
    """v has a bias, and two linears read what is made of it."""
    v = dense(b, x, "v", 64, 64, b.weight("bias", 64))
    return b(relax.op.add(dense(b, v, "one"), dense(b, v, "two")))


def test_the_rows_of_the_values_are_rotated_instead_of_their_sums() -> None:
    def expected(b: Body, x: Any) -> Any:
        q = b(relax.op.reshape(dense(b, x, "q"), [2, 5, 4, 16]))
        k = b(relax.op.reshape(dense(b, x, "k", 32), [2, 5, 2, 16]))
        w = b.weight("v.hadamard16", 32, 64)
        v = b(relax.op.reshape(b(ops.dense(x, w, layer=b.layer("v"))), [2, 5, 2, 16]))
        layouts = ("BSHD",) * 3
        y = b(ops.attention(q, k, v, heads=4, key_heads=2, scale=0.25, layouts=layouts))
        y, w = b(relax.op.reshape(y, [2, 5, 64])), b.weight("out.hadamard16", 64, 64)
        return b(ops.dense(y, w, layer=b.layer("out")))

    before = model_of(SHAPE, attended)
    named = {name: replace(layer, output=name) for name, layer in before.layers.items()}
    after = FoldRotations({"out": PLAIN})(replace(before, layers=named))
    same_ir(after.module, model_of(SHAPE, expected))
    out, v = after.layers["out"], after.layers["v"]
    assert (out.hadamard, out.hadamard_seed, out.hadamard_folded) == (16, None, True)
    assert (v.hadamard, v.hadamard_folded) == (0, False)
    assert (out.output, v.output) == ("out", "")  # v's is no value of the source any more
    held = before.weights["v"].load()
    np.testing.assert_array_equal(after.weights["v.hadamard16"].load().T, PLAIN.apply(held.T))


@pytest.mark.parametrize("rotation", [PLAIN, SIGNED], ids=["plain", "signs"])
@pytest.mark.parametrize(
    ("write", "readers"),
    [
        (attended, ["out"]),
        (lambda b, x: attended(b, x, turned=True), ["out"]),
        (lambda b, x: attended(b, x, mask=True), ["out"]),
        (stacked, ["out"]),
        (straight, ["down"]),
        (biased, ["one", "two"]),
    ],
    ids=["shared heads", "turned", "mask", "stacked", "straight", "biased"],
)
def test_in_float_it_is_the_same_model_and_nothing_is_computed_for_it(
    write: Any, readers: list[str], rotation: Rotation
) -> None:
    before = model_of(SHAPE, write)
    after = FoldRotations(dict.fromkeys(readers, rotation))(before)
    assert not [c for c in calls(after.module) if c.op == ops.HADAMARD]
    same_outputs(before, after)


def same_outputs(before: Model, after: Model) -> None:
    x = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    wanted, y = float_output(before, x), float_output(after, x)
    assert not np.array_equal(wanted, y)  # the weights are others
    np.testing.assert_allclose(y, wanted, rtol=0, atol=ROUNDINGS * np.abs(wanted).max())


def test_what_a_reader_is_given_is_what_an_online_rotation_would_make() -> None:
    """Both give the reader one weight, so they round the same x."""
    before = model_of(SHAPE, attended)
    folded, online = (step({"out": SIGNED})(before) for step in (FoldRotations, Rotate))
    name = f"out.{SIGNED.name}"
    np.testing.assert_array_equal(folded.weights[name].load(), online.weights[name].load())
    same_outputs(online, folded)


def test_one_linear_can_be_rotated_on_both_sides() -> None:
    def write(b: Body, x: Any) -> Any:
        return dense(b, dense(b, dense(b, x, "first"), "second"), "third")

    before = model_of(SHAPE, write)
    same_outputs(before, FoldRotations({"second": SIGNED, "third": Rotation(64)})(before))


def test_of_a_stack_only_the_values_are_rotated() -> None:
    before = model_of(SHAPE, stacked)
    after = FoldRotations({"out": PLAIN})(before)
    was, now = before.weights["qkv"].load(), after.weights["qkv.hadamard16"].load()
    assert np.flatnonzero((was != now).any(axis=1)).tolist() == list(range(128, 192))


@pytest.mark.parametrize(
    ("write", "layer", "reason"),
    [
        (two_readers, "q", "without a norm or an activation"),
        (chain, "down", "without a norm or an activation"),
        (gated, "down", "without a norm or an activation"),
        (windows, "conv", "without a norm or an activation"),
        (straight, "up", "input of the model"),
        (straight, "nobody", "no linear with a constant weight"),
    ],
)
def test_what_cannot_be_folded_is_an_error_that_says_why(
    write: Any, layer: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"layer '{layer}' cannot be folded away.*{reason}"):
        FoldRotations({layer: PLAIN})(model_of(SHAPE, write))


def test_blocks_lie_within_a_head() -> None:
    with pytest.raises(ConfigError, match="blocks of 32 do not lie within 16 channels of a head"):
        FoldRotations({"out": Rotation(32)})(model_of(SHAPE, attended))


def test_readers_of_one_input_are_rotated_together() -> None:
    with pytest.raises(ConfigError, match="'one', 'two' read the same input"):
        FoldRotations({"one": PLAIN})(model_of(SHAPE, biased))


def test_values_that_others_read_too_are_left_alone() -> None:
    def write(b: Body, x: Any) -> Any:
        v = dense(b, x, "v")
        return b(relax.op.add(dense(b, v, "out"), v))

    found = producers(model_of(SHAPE, write).module)
    assert found["out"] == "its input is read by others than linears"


def test_every_attention_of_tiny_lm_has_one() -> None:
    model = run(PREPARE, import_model(TINY_LM, {}))
    found = {
        layer: made.layer
        for layer, made in producers(model.module).items()
        if isinstance(made, Producer)
    }
    blocks = [f"layers.{i}.attention" for i in range(4)]
    assert found == {f"{block}.output": f"{block}.value" for block in blocks}
