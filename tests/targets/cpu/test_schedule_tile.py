"""Matmuls, convolutions and pooling against numpy: every tail of rows and columns, every ISA."""

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.targets.cpu.isa import ISAS, Isa, detect
from tests.targets.cpu.relax_runner import B, H, L, W, assembly, function, normal

op = relax.op
RUNNABLE = [isa for isa in ISAS if isa.runs_on(detect())]
SIZES = [(1, 1), (7, 9), (8, 32), (33, 20), (65, 131)]  # M (or K) and N (or K) of a product


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("symbolic", ["M, N", "M, K", "K", "K, N with M = 1", "M, K with N = 1"])
def test_matmul(symbolic: str, isa: Isa) -> None:
    shapes: dict[str, tuple[Any, Any, Any]] = {
        "M, N": (L, 64, H),
        "M, K": (L, H, 64),
        "K": (37, H, 30),
        "K, N with M = 1": (1, L, H),
        "M, K with N = 1": (L, H, 1),
    }
    m, k, n = shapes[symbolic]
    built = function(op.matmul, (B, 3, m, k), (B, 3, k, n), isa=isa)
    for sizes in SIZES:
        size = {L.name: sizes[0], H.name: sizes[1]}
        m_, k_, n_ = (int(size.get(getattr(d, "name", ""), 0) or d) for d in (m, k, n))
        x, y = normal(2, 3, m_, k_), normal(2, 3, k_, n_, seed=1)
        exact = x.astype(np.float64) @ y
        bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(y))  # k roundings of 6e-8 at most
        assert (np.abs(built(x, y) - exact) <= bound).all(), (m_, k_, n_)


def test_attention_scores_with_scale_and_mask_are_one_kernel() -> None:
    def scores(q: Any, k: Any, mask: Any) -> Any:
        return op.add(op.multiply(op.matmul(q, k), relax.const(0.25)), mask)

    built = function(scores, (B, 4, L, 16), (B, 4, 16, H), (B, 1, 1, H))
    assert built.rules == ["stages"]
    for length in (1, 5, 40):
        q, k = normal(2, 4, length, 16), normal(2, 4, 16, length + 3, seed=1)
        mask = normal(2, 1, 1, length + 3, seed=2)
        np.testing.assert_allclose(built(q, k, mask), q @ k * 0.25 + mask, rtol=1e-4, atol=1e-5)


def test_a_right_factor_along_the_wrong_axis_is_packed() -> None:
    def product(x: Any, y: Any) -> Any:
        return op.einsum([x, y], "bmk,bnk->bmn")

    built = function(product, (B, L, 16), (B, H, 16))
    for length in (1, 9, 40):
        x, y = normal(2, length, 16), normal(2, length + 2, 16, seed=1)
        np.testing.assert_allclose(built(x, y), x @ y.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


def windows(x: np.ndarray, kernel: int, stride: int, pad: int, fill: float = 0) -> np.ndarray:
    """(N, C, H, W) -> (N, C, OH, OW, kernel, kernel)."""
    edges = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    padded = np.pad(x, edges, constant_values=fill)
    return sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]


def convolution(x: np.ndarray, w: np.ndarray, stride: int, pad: int, groups: int) -> np.ndarray:
    n, channels = x.shape[:2]
    found = windows(x.astype(np.float64), w.shape[2], stride, pad)
    found = found.reshape(n, groups, channels // groups, *found.shape[2:])
    y = np.einsum("ngchwij,gocij->ngohw", found, w.reshape(groups, -1, *w.shape[1:]))
    return y.reshape(n, -1, *y.shape[3:])


@pytest.mark.parametrize(
    ("groups", "outputs", "kernel", "stride", "pad"),
    [(1, 10, 3, 1, 1), (1, 16, 1, 1, 0), (16, 16, 5, 1, 2), (16, 16, 3, 2, 1), (4, 24, 3, 1, 1)],
)
def test_convolution(groups: int, outputs: int, kernel: int, stride: int, pad: int) -> None:
    w, bias = normal(outputs, 16 // groups, kernel, kernel, seed=1), normal(outputs, seed=2)

    def emit(x: Any, w: Any, bias: Any) -> Any:
        return op.nn.relu(
            ops.conv(
                x, w, bias, layer="c", strides=(stride,) * 2, padding=(pad,) * 4, groups=groups
            )
        )

    built = function(emit, (B, 16, H, W), w.shape, bias.shape)
    assert set(built.rules) == {"stages"}
    for size in ((2, 16, 9, 33), (1, 16, 20, 70), (1, 16, 5, 5)):
        x = normal(*size)
        y = convolution(x, w, stride, pad, groups) + bias[:, None, None]
        np.testing.assert_allclose(built(x, w, bias), np.maximum(y, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "extra"), [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0)]
)
def test_transposed_convolution(kernel: int, stride: int, pad: int, extra: int) -> None:
    w = normal(8, 5, kernel, kernel, seed=1)
    built = function(
        lambda x, w: op.nn.conv2d_transpose(
            x, w, strides=(stride,) * 2, padding=(pad,) * 2, output_padding=(extra,) * 2
        ),
        (B, 8, H, W),
        w.shape,
    )
    x = normal(2, 8, 9, 33)
    spread = np.zeros((2, 8, 9 * stride - stride + 1, 33 * stride - stride + 1))
    spread[:, :, ::stride, ::stride] = x
    edge = kernel - 1 - pad
    spread = np.pad(spread, ((0, 0), (0, 0), (edge, edge + extra), (edge, edge + extra)))
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    np.testing.assert_allclose(
        built(x, w), convolution(spread, flipped, 1, 0, 1), rtol=1e-4, atol=1e-4
    )


def test_pooling() -> None:
    x = normal(2, 4, 9, 33)
    most = function(lambda x: op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1)), (B, 4, H, W))
    np.testing.assert_array_equal(most(x), windows(x, 3, 2, 1, -np.inf).max((4, 5)))
    mean = function(
        lambda x: op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1), count_include_pad=True),
        (B, 4, H, W),
    )
    expected = windows(x.astype(np.float64), 3, 2, 1).mean((4, 5))
    np.testing.assert_allclose(mean(x), expected, rtol=1e-5, atol=1e-6)
    everything = function(lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)), (B, 4, H, W))
    expected = x.astype(np.float64).mean((2, 3), keepdims=True)
    np.testing.assert_allclose(everything(x), expected, rtol=1e-5, atol=1e-6)


def test_accumulators_are_registers() -> None:
    """A scratch buffer on the heap would be stored to at every step of the sum."""
    built = function(op.matmul, (L, 64), (64, 64))
    text = assembly(built)
    assert "AllocWorkspace" not in text
    lines = [line.split() for line in text.splitlines()]
    if detect().name == "generic":
        pytest.skip("no fused multiply-add to count")
    assert sum("vfmadd" in line[0] for line in lines if line) >= 12
