"""Quantizers against slow, obvious implementations of what their papers say."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, BlockFormat, Quantized
from lbcompiler.quantizers import QUANTIZERS, Problem
from lbcompiler.quantizers.curvature import DAMPING, curvature
from lbcompiler.quantizers.grid import Grid
from lbcompiler.quantizers.mr_gptq import STRETCHED
from lbcompiler.quantizers.quantease import RELAXED, SWEEPS, _sweep

N, TOKENS = 6, 200
LEARNING = [name for name, method in QUANTIZERS.items() if method.needs_hessian]
# a quotient that float32 and float64 round to different sides of a tie: one code moves by a step
TIES = 0.02
ROUNDING = 1e-3  # relative, of an objective summed in float32


def problem(
    fmt: BlockFormat, k: int = 48, seed: int = 0, rule: str = "", **other: object
) -> Problem:
    """Correlated inputs with loud channels, as in a transformer."""
    draw = np.random.default_rng(seed)
    mixing = draw.standard_normal((k, k)) / np.sqrt(k) + np.eye(k)
    x = draw.standard_normal((TOKENS, k)) @ mixing * np.exp(draw.standard_normal(k))
    weight = draw.standard_normal((N, k)).astype(np.float32)
    hessian = (x.T @ x / TOKENS).astype(np.float32)
    given = {"weight": weight, "fmt": fmt, "rule": rule or fmt.default_rule, "hessian": hessian}
    return Problem(**(given | other))  # type: ignore[arg-type]


def damped(p: Problem) -> np.ndarray:
    hessian = p.hessian.astype(np.float64)  # type: ignore[union-attr]
    return hessian + DAMPING[0] * np.diagonal(hessian).mean() * np.eye(len(hessian))


def objective(p: Problem, q: Quantized) -> float:
    """tr((W* - W^) H (W* - W^)^T)."""
    return float(row_objectives(p, p.fmt.dequantize(q)).sum())


def fixed_steps(p: Problem) -> np.ndarray:
    """(N, K) of the scales that quantizing gives, before any column is compensated."""
    curved = curvature(p, "test")
    scaled = p.fmt.quantize(curved.target, p.rule, importance=curved.pivots)
    return Grid.of(scaled, p.fmt).steps


def greedy(p: Problem) -> np.ndarray:
    """arXiv 2210.17323, algorithm 1 without its blocks, columns by falling diagonal: values."""
    hessian, steps = damped(p), fixed_steps(p).astype(np.float64)
    order = np.argsort(-np.diagonal(hessian).astype(np.float32), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T
    w = curvature(p, "test").target.astype(np.float64)[:, order]
    values = np.zeros_like(w)
    for j, column in enumerate(order):
        step = steps[:, column]
        values[:, j] = p.fmt.element.round((w[:, j] / step).astype(np.float32)) * step
        error = (w[:, j] - values[:, j]) / factor[j, j]
        w[:, j:] -= np.outer(error, factor[j, j:])
    original = np.zeros_like(values)
    original[:, order] = values
    return original


def nearest(p: Problem) -> np.ndarray:
    """Values of rounding to nearest under the same scales."""
    steps = fixed_steps(p)
    return p.fmt.element.round(curvature(p, "test").target / steps) * steps.astype(np.float64)


def row_objectives(p: Problem, values: np.ndarray) -> np.ndarray:
    """(N,): what the objective is a sum of."""
    error = curvature(p, "test").target - values.astype(np.float64)
    return np.einsum("nk,kl,nl->n", error, damped(p), error)


def slow_gptq(p: Problem) -> np.ndarray:
    """Greedy, but for rows that are better rounded to nearest."""
    found, plain = greedy(p), nearest(p)
    is_worse = row_objectives(p, found) > row_objectives(p, plain)
    return np.where(is_worse[:, None], plain, found)


def slow_quantease(p: Problem) -> np.ndarray:
    """arXiv 2309.01885, its update of one entry at a time."""
    hessian, steps = damped(p), fixed_steps(p).astype(np.float64)
    target = curvature(p, "test").target.astype(np.float64)
    order = np.argsort(-np.diagonal(hessian).astype(np.float32), kind="stable")

    def rounded(x: np.ndarray) -> np.ndarray:
        return p.fmt.element.round((x / steps).astype(np.float32)) * steps

    def value(w: np.ndarray) -> float:
        return float(np.einsum("nk,kl,nl->", target - w, hessian, target - w))

    now = rounded(target)
    best, least = now.copy(), value(now)
    for sweep in range(1, SWEEPS + 1):
        is_relaxed = sweep % RELAXED == 0 and sweep < SWEEPS
        for j in order:
            others = (target - now) @ hessian[:, j] - (target - now)[:, j] * hessian[j, j]
            beta = target[:, j] + others / hessian[j, j]
            if not is_relaxed:
                step = steps[:, j]
                beta = p.fmt.element.round((beta / step).astype(np.float32)) * step
            now[:, j] = beta
        if not is_relaxed and value(now) < least:
            best, least = now.copy(), value(now)
    return best


def agrees(p: Problem, q: Quantized, expected: np.ndarray) -> None:
    values = p.fmt.dequantize(q)
    different = np.abs(values - expected) > ROUNDING * np.abs(expected).max()
    if different.mean() <= TIES:
        return
    # one tie early in the order may move all that follow: then the objectives agree
    slow = row_objectives(p, expected).sum()
    assert objective(p, q) == pytest.approx(slow, rel=0.05)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("k", [48, 70, 160])
def test_gptq_is_the_papers(name: str, k: int) -> None:
    p = problem(FORMATS[name], k)
    agrees(p, QUANTIZERS["gptq"].quantize(p), slow_gptq(p))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("k", [48, 70, 96])
def test_quantease_is_the_papers(name: str, k: int) -> None:
    p = problem(FORMATS[name], k)
    agrees(p, QUANTIZERS["quantease"].quantize(p), slow_quantease(p))


def test_pivots_are_what_later_columns_leave_of_a_column() -> None:
    """The inverse of an entry of the inverse of what is left of H."""
    p = problem(FORMATS["nvfp4"], 24)
    curved, hessian = curvature(p, "test"), damped(p)
    for i, column in enumerate(curved.order):
        later = curved.order[i:]
        left = 1 / np.linalg.inv(hessian[np.ix_(later, later)])[0, 0]
        assert curved.pivots[column] == pytest.approx(left, rel=ROUNDING)


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("name", ["nvfp4", "nvint4"])
def test_searched_scales_lower_the_objective(name: str, method: str) -> None:
    """Mean of the logarithm over problems: one by one the luck of roundings may say otherwise."""
    quantize, gains = QUANTIZERS[method].quantize, []
    for seed in range(8):
        costs = [
            objective(p, quantize(p))
            for rule in ("four_over_six", "sweep")
            for p in [problem(FORMATS[name], 64, seed, rule)]
        ]
        gains.append(np.log(costs[1] / costs[0]))
    assert np.mean(gains) < 0


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in STRETCHED])
def test_mr_gptq_is_gptq_under_searched_scales(name: str) -> None:
    fmt = FORMATS[name]
    rule = "mse" if fmt.scale == "e8m0" else "sweep"
    got = QUANTIZERS["mr_gptq"].quantize(problem(fmt))
    wanted = QUANTIZERS["gptq"].quantize(problem(fmt, rule=rule))
    np.testing.assert_array_equal(got.codes, wanted.codes)
    np.testing.assert_array_equal(got.scales, wanted.scales)


@pytest.mark.parametrize("seed", range(6))
def test_mr_gptq_takes_the_better_factor_of_mxfp4s_scales(seed: int) -> None:
    """That of GPTQ of W / f under H, times f."""
    p = problem(FORMATS["mxfp4"], 96, seed, rule="mse")
    q = QUANTIZERS["mr_gptq"].quantize(p)
    found = {}
    for factor in (1, 4 / 3):
        part = problem(p.fmt, 96, seed, rule="mse", weight=p.weight / np.float32(factor))
        error = p.weight - slow_gptq(part) * factor
        found[factor] = float(np.einsum("nk,kl,nl->", error, damped(p), error))
    assert objective(p, q) == pytest.approx(min(found.values()), rel=0.05)  # ties, as in `agrees`
    assert objective(p, q) <= objective(p, QUANTIZERS["gptq"].quantize(p))
    assert float(q.tensor_scale) in np.array([1, 4 / 3], np.float32)


def test_each_factor_is_the_better_one_somewhere() -> None:
    fmt, draw = FORMATS["mxfp4"], np.random.default_rng(0)
    exact = fmt.dequantize(fmt.quantize(draw.standard_normal((N, 64)).astype(np.float32)))
    for factor in np.array([1, 4 / 3], np.float32):
        q = QUANTIZERS["mr_gptq"].quantize(problem(fmt, 64, weight=exact * factor))
        assert q.tensor_scale == factor
        np.testing.assert_allclose(fmt.dequantize(q), exact * factor, rtol=2**-22)


@pytest.mark.parametrize("name", FORMATS)
def test_mse_finds_the_scales_of_least_weighted_error(name: str) -> None:
    """Against every byte within the search's reach, tried one by one."""
    fmt = FORMATS[name]
    p = problem(fmt, k=64)
    found = QUANTIZERS["mse"].quantize(p)
    importance = np.diagonal(damped(p))

    def error(q: Quantized) -> np.ndarray:
        difference = np.square(p.weight - fmt.dequantize(q).astype(np.float64)) * importance
        return difference.reshape(N, -1, fmt.block).sum(-1)

    plain = fmt.quantize(p.weight, "rceil" if fmt.scale == "e8m0" else "absmax")
    best = error(plain)
    for offset in (-1,) if fmt.scale == "e8m0" else range(-8, 9):
        scales = (plain.scales.astype(int) + offset).clip(1, 126 if fmt.scale == "e4m3" else 254)
        trial = Quantized(plain.codes, scales.astype(np.uint8), plain.tensor_scale)
        steps = Grid.of(trial, fmt).steps
        codes = fmt.element.encode(p.weight / steps)
        best = np.minimum(best, error(Quantized(codes, trial.scales, plain.tensor_scale)))
    assert error(found).sum() <= best.sum() * (1 + ROUNDING)


@pytest.mark.parametrize("method", LEARNING)
@settings(deadline=None)  # of milliseconds, which other processes take
@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 70), st.integers(0, 10**6))
def test_learning_is_not_worse_than_rounding(method: str, name: str, k: int, seed: int) -> None:
    fmt = FORMATS[name]
    rule = "mse" if fmt.scale == "e8m0" else "sweep"
    p = problem(fmt, k, seed, rule)
    curved = curvature(p, "test")
    rounded = fmt.quantize(curved.target, rule, importance=curved.pivots)
    found = objective(p, QUANTIZERS[method].quantize(p))
    assert found <= (1 + ROUNDING) * objective(p, rounded) + 1e-9


def test_no_row_of_gptq_is_worse_than_rounded_to_nearest() -> None:
    """Greedy choices in few columns are, now and then."""
    were_worse = 0
    for fmt in FORMATS.values():
        for seed in range(20):
            p = problem(fmt, 12, seed)
            plain = row_objectives(p, nearest(p))
            found = row_objectives(p, fmt.dequantize(QUANTIZERS["gptq"].quantize(p)))
            assert (found <= (1 + ROUNDING) * plain).all()
            were_worse += np.count_nonzero(row_objectives(p, greedy(p)) > 1.1 * plain)
    assert were_worse


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("k", [48, 160])
def test_no_sweep_of_quantease_raises_the_objective(name: str, k: int) -> None:
    """Rounded sweeps from rounding to nearest, then one that is relaxed."""
    p = problem(FORMATS[name], k)
    curved = curvature(p, "test")
    grid = Grid.under(curved, p)
    hessian = curved.hessian.astype(np.float32)
    target, steps = (np.ascontiguousarray(a.T) for a in (curved.target, grid.steps))
    held = p.fmt.element.round(target / steps) * steps
    pull = hessian @ (target - held)
    costs = [curved.objective((target - held).T)]
    for stepped in (*[steps] * 5, None):
        _sweep(hessian, pull, held, stepped, grid)
        costs.append(curved.objective((target - held).T))
    assert (np.diff(costs) <= ROUNDING * costs[0]).all()
    assert costs[-1] < costs[1] < costs[0]


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("name", FORMATS)
def test_white_inputs_leave_rounding_to_nearest(method: str, name: str) -> None:
    fmt = FORMATS[name]
    rule = "mse" if fmt.scale == "e8m0" else "sweep"
    p = problem(fmt, 64, rule=rule, hessian=np.eye(64, dtype=np.float32))
    got = QUANTIZERS[method].quantize(p)
    stored = fmt if fmt.has_tensor_scale or got.tensor_scale is None else fmt.scaled
    given = got.tensor_scale if stored is not fmt else None
    wanted = stored.quantize(p.weight, rule, tensor_scale=given)
    np.testing.assert_array_equal(fmt.dequantize(got), fmt.dequantize(wanted))


@pytest.mark.parametrize("method", LEARNING)
def test_dead_channels_and_zero_blocks(method: str) -> None:
    p = problem(FORMATS["nvfp4"], 64)
    hessian = p.hessian.copy()  # type: ignore[union-attr]
    hessian[:, 5] = hessian[5] = 0
    weight = p.weight.copy()
    weight[:, 16:32] = 0
    p = problem(FORMATS["nvfp4"], 64, weight=weight, hessian=hessian)
    q = QUANTIZERS[method].quantize(p)
    values = p.fmt.dequantize(q)
    assert np.isfinite(values).all()
    assert not q.codes[:, 16:32].any()


@pytest.mark.parametrize("method", LEARNING)
def test_a_singular_hessian_is_damped(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    p = problem(FORMATS["mxfp4"], 64, hessian=x.T @ x / 3)
    assert np.isfinite(p.fmt.dequantize(QUANTIZERS[method].quantize(p))).all()
    nothing = problem(FORMATS["mxfp4"], 64, hessian=np.zeros((64, 64), np.float32))
    assert np.isfinite(p.fmt.dequantize(QUANTIZERS[method].quantize(nothing))).all()


def broken(change: Callable[[np.ndarray], None]) -> np.ndarray:
    hessian = np.eye(32, dtype=np.float32)
    change(hessian)
    return hessian


@pytest.mark.parametrize(
    ("hessian", "said"),
    [
        (None, "calibration data"),
        (np.eye(31, dtype=np.float32), "K = 32"),
        (broken(lambda h: h.__setitem__((3, 3), np.nan)), "NaN"),
        (broken(lambda h: h.__setitem__((3, 3), -1)), "channel 3"),
        (broken(lambda h: h.__setitem__((3, 4), 1)), "symmetric"),
        (np.full((32, 32), -1, np.float32) + 2 * np.eye(32, dtype=np.float32), "no sum of squares"),
    ],
)
def test_a_hessian_that_is_none_is_refused(hessian: np.ndarray | None, said: str) -> None:
    p = problem(FORMATS["mxfp4"], 32, hessian=hessian)
    with pytest.raises(ConfigError, match=said):
        QUANTIZERS["gptq"].quantize(p)


def test_cross_moments_move_the_target_to_what_is_read() -> None:
    """x^ = x / 2: the best weight is 2 W, up to damping."""
    p = problem(FORMATS["mxint8"], 64)
    assert p.hessian is not None
    half = problem(FORMATS["mxint8"], 64, hessian=p.hessian / 4, cross=p.hessian / 2)
    curved = curvature(half, "test")
    d = DAMPING[0] * np.diagonal(half.hessian).mean()  # type: ignore[arg-type]
    h, identity = half.hessian.astype(np.float64), np.eye(64)  # type: ignore[union-attr]
    expected = p.weight @ (2 * h + d * identity) @ np.linalg.inv(h + d * identity)
    np.testing.assert_allclose(curved.target, expected, rtol=1e-4, atol=1e-4)
