"""From `lbc.attention` to code: what the kernel is asked for, and one function for equal ones."""

from typing import Any

import numpy as np
import pytest
import tvm

from lbcompiler.ir import ops
from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.lower_attention import LowerAttention, described
from lbcompiler.targets.cpu.threads import set_threads
from tests.passes.build import Body, model_of

INPUTS = {"q": ["b", "s", 6, 16], "k": ["b", 4, "t", 16], "v": ["b", "t", 2, 16]}
ATTRS: dict[str, Any] = {
    "heads": 6,
    "key_heads": 2,
    "scale": 0.25,
    "layouts": ["BSHD", "BHSD", "BSHD"],
    "first_heads": [0, 2, 0],
}
Q, K, V = Heads(6, "BSHD", 0, 6), Heads(2, "BHSD", 2, 4), Heads(2, "BSHD", 0, 2)


def twice(b: Body, q: Any, k: Any, v: Any, *mask: Any) -> Any:
    first = b(ops.attention(q, k, v, *mask, **ATTRS))
    return b(ops.attention(first, k, v, *mask, **ATTRS))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [(["b", 1, 1, "t"], "BK"), ([1, 6, "s", 1], "HQ"), ([1, 1, 1, 1], ""), (None, None)],
)
def test_a_mask_has_the_axes_that_are_not_one(shape: list[Any] | None, axes: str | None) -> None:
    found: list[Attention] = []

    def write(b: Body, *inputs: Any) -> Any:
        y = b(ops.attention(*inputs, **ATTRS))
        found.append(described(b.builder.lookup_binding(y)))
        return y

    model_of(INPUTS if shape is None else {**INPUTS, "mask": shape}, write)
    assert found == [Attention(Q, K, V, 16, 16, 0.25, mask=axes, few=None)]


@pytest.mark.parametrize(
    ("queries", "keys", "few"),
    [("s", "s", False), ("s", "t", None), (1, "t", True), (17, "t", False), (1, 1, True)],
)
def test_few_queries_are_known_from_the_extents(queries: Any, keys: Any, few: bool | None) -> None:
    found: list[Attention] = []

    def write(b: Body, *inputs: Any) -> Any:
        y = b(ops.attention(*inputs, **ATTRS))
        found.append(described(b.builder.lookup_binding(y)))
        return y

    inputs = {"q": ["b", queries, 6, 16], "k": ["b", 4, keys, 16], "v": ["b", keys, 2, 16]}
    model_of(inputs, write)
    assert [what.few for what in found] == [few]


def test_equal_attentions_are_one_function_and_run() -> None:
    model = LowerAttention(detect())(model_of(INPUTS, twice))
    kernels = [f for f in model.module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(kernels) == 1
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in [(2, 5, 6, 16), (2, 4, 7, 16), (2, 7, 2, 16)]
    )
    set_threads(None)
    machine = build(model.module, detect().tvm_target()).load(tvm.cpu())
    y = machine["main"](*[tvm.runtime.tensor(x) for x in (q, k, v)]).numpy()
    expected = attention(attention(q, k, v), k, v)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    k = k[:, 2:].repeat(3, 1)
    v = v.transpose(0, 2, 1, 3).repeat(3, 1)
    scores = q.transpose(0, 2, 1, 3) @ k.swapaxes(2, 3) * 0.25
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ v
    return y.transpose(0, 2, 1, 3)
