"""Whole float models through `build`: a transformer layer with symbolic batch and length."""

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from lbcompiler.ir.model import Dim
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.threads import set_threads
from tests.targets.cpu.relax_runner import Function, normal

op = relax.op
WIDTH, HEADS = 64, 4
WEIGHTS = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]


def heads(x: Any, batch: Any, length: Any) -> Any:
    split = op.reshape(x, (batch, length, HEADS, WIDTH // HEADS))
    return op.permute_dims(split, [0, 2, 1, 3])


def transformer(layers: int) -> Any:
    """main(x (batch, length, 64), mask (batch, 1, 1, length), weights...) of pre-norm layers."""
    batch, length = (tirx.Var(name, "int64") for name in ("batch", "length"))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([batch, length, WIDTH], "float32"))
    mask = relax.Var("mask", relax.TensorType([batch, 1, 1, length], "float32"))
    weights = [
        relax.Var(f"w{i}", relax.TensorType(list(s), "float32"))
        for i, s in enumerate(WEIGHTS * layers)
    ]
    ones, zeros = relax.const(np.ones(WIDTH, "f4")), relax.const(np.zeros(WIDTH, "f4"))
    with builder.function("main", [x, mask, *weights]):
        with builder.dataflow():
            for layer in range(layers):
                wq, wk, wv, wo, up, down = weights[6 * layer : 6 * layer + 6]
                y = op.nn.layer_norm(x, ones, zeros, [-1])
                q, k, v = (heads(op.matmul(y, w), batch, length) for w in (wq, wk, wv))
                scores = op.matmul(q, op.permute_dims(k, [0, 1, 3, 2]))
                scores = op.add(op.multiply(scores, relax.const(0.25)), mask)
                context = op.matmul(op.nn.softmax(scores, -1), v)
                context = op.reshape(op.permute_dims(context, [0, 2, 1, 3]), (batch, length, WIDTH))
                x = builder.emit(op.add(x, op.matmul(context, wo)))
                y = op.nn.layer_norm(x, ones, zeros, [-1])
                x = builder.emit(op.add(x, op.matmul(op.nn.silu(op.matmul(y, up)), down)))
            result = builder.emit_output(x)
        builder.emit_func_output(result)
    return builder.get()


def reference(x: np.ndarray, mask: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    x = x.astype(np.float64)
    batch, length, _ = x.shape
    for start in range(0, len(weights), 6):
        wq, wk, wv, wo, up, down = weights[start : start + 6]
        q, k, v = (
            (norm(x) @ w).reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3)
            for w in (wq, wk, wv)
        )
        scores = q @ k.transpose(0, 1, 3, 2) * 0.25 + mask
        e = np.exp(scores - scores.max(-1, keepdims=True))
        context = (e / e.sum(-1, keepdims=True)) @ v
        x = x + context.transpose(0, 2, 1, 3).reshape(x.shape) @ wo
        hidden = norm(x) @ up
        x = x + (hidden / (1 + np.exp(-hidden))) @ down
    return x


def weights_of(layers: int) -> list[np.ndarray]:
    shapes = WEIGHTS * layers
    return [normal(*s, seed=i) / np.float32(np.sqrt(s[0])) for i, s in enumerate(shapes)]


def run(machine: Any, *arrays: np.ndarray) -> np.ndarray:
    set_threads(None)
    return machine["main"](*(tvm.runtime.tensor(a) for a in arrays)).numpy()


@pytest.mark.parametrize("dims", [(), (Dim("batch", 1, 8), Dim("length", 1, 128))])
def test_a_transformer_with_symbolic_batch_and_length(dims: tuple[Dim, ...]) -> None:
    machine = build(transformer(2), detect().tvm_target(), dims).load(tvm.cpu())
    weights = weights_of(2)
    for batch, length in ((1, 1), (2, 7), (1, 40), (3, 128)):
        x, mask = normal(batch, length, WIDTH), normal(batch, 1, 1, length, seed=1)
        mask[:, :, :, 1:][mask[:, :, :, 1:] < -1] = -np.inf
        found = run(machine, x, mask, *weights)
        np.testing.assert_allclose(found, reference(x, mask, weights), rtol=1e-4, atol=1e-4)


def test_no_kernel_of_a_model_is_unscheduled() -> None:
    rules = Function(transformer(1), detect()).rules
    assert set(rules) == {"rows", "stages"}


def test_equal_layers_are_compiled_once() -> None:
    two, four = (Function(transformer(layers), detect()) for layers in (2, 4))
    assert len(two.scheduled) == len(four.scheduled)


def test_an_upper_bound_lets_memory_be_planned_before_the_run() -> None:
    """With bounds the activations share storage of a fixed size; without, each has its own."""
    dims = (Dim("batch", 1, 8), Dim("length", 1, 128))
    target = detect().tvm_target()
    bounded = build(transformer(4), target, dims).executable.stats()
    free = build(transformer(4), target).executable.stats()
    assert bounded != free
