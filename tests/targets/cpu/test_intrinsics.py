from fractions import Fraction

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import (
    activation_group,
    at,
    dot,
    dot_takes_unsigned,
    fma,
    let,
    load,
    splat,
    store,
)
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, GENERIC
from tests.targets.cpu import reference

each_isa = pytest.mark.parametrize("isa", reference.HERE, ids=lambda isa: isa.name)


def hard_floats(seed: int, n: int) -> np.ndarray:
    """Random bit patterns, then every pair of values at which rounding or range turns."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << 32, n, dtype=np.uint32).view(np.float32)
    special = np.float32(
        [0, -0.0, 1, -1, 2**-149, 2**-126, 3.4028235e38, np.inf, np.nan, 1 + 2**-23]
    )
    x[: len(special)] = rng.permutation(special)
    return x


def rounded_once(a: float, b: float, c: float) -> np.float32:
    """a * b + c in exact fractions, then to the nearest float32, ties to even."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = np.float32(np.clip(float(exact), -3.4e38, 3.4e38))
    candidates = [np.nextafter(near, np.float32(s) * np.inf, dtype=np.float32) for s in (-1, 1)]
    return min(
        [near, *candidates],
        key=lambda y: (abs(Fraction(float(y)) - exact), int(y.view(np.uint32)) & 1),
    )


def test_the_reference_rounds_once() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 3000)).astype(np.float32)
    c[:1000] = -a[:1000] * b[:1000]  # all but cancels
    b[1000:2000] = np.float32(1 + 2**-12)
    c[1000:2000] *= np.float32(2**-30)  # next to a tie
    expected = [rounded_once(*map(float, abc)) for abc in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(reference.fma(a, b, c), np.float32(expected))


@each_isa
def test_fma_rounds_once(isa) -> None:
    n = 1 << 14
    a, b, c = (hard_floats(seed, n) for seed in range(3))
    with np.errstate(all="ignore"):
        c[: n // 2] = (-a.astype(np.float64) * b).astype(np.float32)[: n // 2]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        x, y, z, out = (T.arg(name, T.buffer((n,), "float32")) for name in ("x", "y", "z", "out"))
        with T.serial(n // isa.lanes) as i:
            lanes = at(i * isa.lanes, isa.lanes)
            T.buffer_store(out, fma(x[lanes], y[lanes], z[lanes]), [lanes])
    module = reference.compiled(isa, fma=builder.get())
    (result,) = reference.call(module["fma"], [a, b, c], ((n,), "float32"))
    np.testing.assert_array_equal(result, reference.fma(a, b, c))


@each_isa
@pytest.mark.parametrize(("weight", "activation"), [(255, 64), (120, 127), (63, 127), (128, 127)])
def test_the_dot_product_is_exact_at_its_limits(isa, weight, activation) -> None:
    """Every lane at +- the limits: where `vpmaddubsw` would saturate, the signed form is taken."""
    unsigned = dot_takes_unsigned(isa, weight if weight != 128 else 255, activation)
    weights = np.full(isa.lanes * isa.k_group, weight, np.uint8)
    signed_weights = np.resize([-128, 127, -1, 0], len(weights)).astype(np.int8)
    used = weights if unsigned else signed_weights
    activations = np.resize([activation, -activation], (2, isa.k_group)).astype(np.int8)
    activations[1] = activation
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        w = T.arg("w", T.buffer((len(weights),), str(used.dtype)))
        a = T.arg("a", T.buffer((2, isa.k_group), "int8"))
        out = T.arg("out", T.buffer((2, isa.lanes), "int32"))
        with T.serial(2) as row:
            start = splat(-7, "int32", isa.lanes)
            group = let(activation_group(isa, a, row, 0))
            T.buffer_store(
                out, dot(isa, start, w[at(0, len(weights))], group), [row, at(0, isa.lanes)]
            )
    module = reference.compiled(isa, dot=builder.get())
    (result,) = reference.call(module["dot"], [used, activations], ((2, isa.lanes), "int32"))
    columns = used.reshape(isa.lanes, isa.k_group).astype(np.int64)
    np.testing.assert_array_equal(result, activations.astype(np.int64) @ columns.T - 7)


def test_only_avx2_has_to_mind_sixteen_bits() -> None:
    assert dot_takes_unsigned(AVX512_VNNI, 255, 127)
    assert dot_takes_unsigned(GENERIC, 255, 127)
    assert dot_takes_unsigned(AVX2, 120, 127)
    assert not dot_takes_unsigned(AVX2, 255, 127)


@pytest.mark.parametrize("valid", [1, 7, 8, 13, 16])
def test_a_short_load_is_padded_and_a_short_store_stops(valid) -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        x = T.arg("x", T.buffer((valid,), "float32"))
        padded = T.arg("padded", T.buffer((16,), "float32"))
        stopped = T.arg("stopped", T.buffer((16,), "float32"))
        loaded = let(load(x, (), 0, 16, valid))
        T.buffer_store(padded, loaded, [at(0, 16)])
        store(stopped, (), 0, loaded, valid)
    module = reference.compiled(GENERIC, f=builder.get())
    source = np.arange(1, valid + 1, dtype=np.float32)
    padded, stopped = reference.call(module["f"], [source], *[((16,), "float32")] * 2)
    np.testing.assert_array_equal(padded, np.pad(source, (0, 16 - valid)))
    np.testing.assert_array_equal(stopped, np.pad(source, (0, 16 - valid), constant_values=77))
