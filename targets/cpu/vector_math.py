"""exp, log, erf, tanh and sigmoid as straight-line float32 arithmetic: loops over them vectorize.

LLVM turns `tirx.exp` and its kin into one libm call per lane, several nanoseconds an element. Each
builder takes a scalar or vector float32 expression and returns one of its dtype, made of `Let`,
arithmetic, `Select` and `reinterpret` only: no branch, no table, no conversion that may overflow.
A comparison with NaN is false, so `Select(limit < x, limit, x)` clamps and lets NaN through, where
`tirx.min` would not.

Largest error against float64 in units of the last place of the float32 result (tested):

| function | error | beyond the range |
|---|---|---|
| `vector_exp` | 1.5 ulp, subnormal results too | +inf above 88.72, 0 below -103.98 |
| `vector_log` | 1.5 ulp | -inf at 0, NaN below |
| `vector_erf` | 8 ulp (5e-7) | exactly +-1 from 3.925 on |
| `vector_tanh` | 7 ulp (4e-7) | exactly +-1 from 9.02 on |
| `vector_sigmoid` | 3 ulp; 2e-38 where the result is below 1e-38 | 0 below -88.73 |

exp and log: the range reductions and polynomials of Cephes (Moshier, expf.c, logf.c). erf and tanh:
x * P(x^2) / Q(x^2), fitted by iteratively reweighted least squares to a relative error of 2e-8; the
ulps are float32 rounding.
"""

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

Expr = Any  # a tvm.tirx expression; TVM ships no type stubs

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
_ROUND_BITS = 0x4B400000
_ERF_LIMIT = 3.925
_ERF_P = (
    *(2.0459649476833874e-06, 2.848361909855157e-4, 3.7724722642451525e-3),
    *(0.05276905745267868, 0.1905927062034607, 1.1283791065216064),
)
_ERF_Q = (
    *(3.80467354261782e-05, 1.1638280702754855e-3, 0.01498305331915617),
    *(0.11418219655752182, 0.5022411346435547, 1.0),
)
_TANH_LIMIT = 9.02
_TANH_P = (
    *(1.331932342196751e-08, 2.0583702280418947e-05, 3.4940498881042004e-3),
    *(0.1337973177433014, 1.0),
)
_TANH_Q = (
    *(7.762133691358031e-07, 3.2831166754476726e-4, 0.02587113343179226),
    *(0.46713048219680786, 1.0),
)


class _Steps:
    """Names for the intermediate values of an expression, so that none is written out twice."""

    def __init__(self) -> None:
        self._bound: list[tuple[Expr, Expr]] = []

    def let(self, name: str, value: Expr) -> Expr:
        var = tirx.Var(name, value.ty)
        self._bound.append((var, value))
        return var

    def within(self, body: Expr) -> Expr:
        """`body` with every name bound around it."""
        for var, value in reversed(self._bound):
            body = tirx.Let(var, value, body)
        return body


def _lanes(x: Expr) -> int:
    return int(x.ty.dtype.lanes)


def _as(kind: str, x: Expr) -> str:
    """The dtype of `kind` elements with as many lanes as x."""
    return kind if _lanes(x) == 1 else f"{kind}x{_lanes(x)}"


def _real(value: float, x: Expr) -> Expr:
    return tirx.const(value, _as("float32", x))


def _integer(value: int, x: Expr) -> Expr:
    return tirx.const(value, _as("int32", x))


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """The polynomial, highest power first."""
    value = _real(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = value * x + _real(coefficient, x)
    return value


def _clamped(x: Expr, low: float, high: float) -> Expr:
    """x within [low, high]; NaN stays NaN."""
    below = tirx.Select(_real(high, x) < x, _real(high, x), x)
    return tirx.Select(x < _real(low, x), _real(low, x), below)


def _power_of_two(exponent: Expr) -> Expr:
    """2^exponent for an int32 exponent in [-126, 127]."""
    bits = (exponent + _integer(127, exponent)) << _integer(23, exponent)
    return tirx.reinterpret(_as("float32", exponent), bits)


def vector_exp(x: Expr) -> Expr:
    """e^x by x = n ln 2 + r, |r| <= ln(2)/2; 2^n in two factors reaches both ends exactly."""
    steps = _Steps()
    x = steps.let("exp_x", x)
    inside = steps.let("exp_in", _clamped(x, -105.0, 89.0))
    rounded = steps.let("exp_k", inside * _real(_LOG2_E, x) + _real(_ROUND, x))
    n = steps.let("exp_n", rounded - _real(_ROUND, x))
    r = inside - n * _real(_LN2_HIGH, x) - n * _real(_LN2_LOW, x)
    r = steps.let("exp_r", r)
    p = steps.let("exp_p", _horner(_EXP, r) * (r * r) + r + _real(1.0, x))
    integer = tirx.reinterpret(_as("int32", x), rounded) - _integer(_ROUND_BITS, x)
    integer = steps.let("exp_i", integer)
    half = steps.let("exp_h", integer >> _integer(1, x))
    return steps.within(p * _power_of_two(half) * _power_of_two(integer - half))


def vector_log(x: Expr) -> Expr:
    """ln x by x = 2^e m, m in [sqrt(1/2), sqrt(2))."""
    steps = _Steps()
    x = steps.let("log_x", x)
    is_subnormal = x < _real(2.0**-126, x)
    scaled = tirx.Select(is_subnormal, x * _real(2.0**23, x), x)
    bits = steps.let("log_b", tirx.reinterpret(_as("int32", x), scaled))
    # subtracting the bits of sqrt(1/2) first carries into the exponent just where m reaches sqrt(2)
    shifted = steps.let("log_s", bits - _integer(0x3F3504F3, x))
    e = shifted >> _integer(23, x)
    m = (shifted & _integer(0x007FFFFF, x)) + _integer(0x3F3504F3, x)
    e_real = tirx.Cast(_as("float32", x), e)
    e_real = e_real - tirx.Select(is_subnormal, _real(23.0, x), _real(0.0, x))
    e_real = steps.let("log_e", e_real)
    f = steps.let("log_f", tirx.reinterpret(_as("float32", x), m) - _real(1.0, x))
    z = steps.let("log_z", f * f)
    tail = _horner(_LOG, f) * f * z + e_real * _real(_LN2_LOW, x) - _real(0.5, x) * z
    finite = steps.let("log_y", f + tail + e_real * _real(_LN2_HIGH, x))
    y = tirx.Select(x < _real(math.inf, x), finite, x)  # NaN too
    y = tirx.Select(x < _real(0.0, x), _real(math.nan, x), y)
    return steps.within(tirx.Select(tirx.abs(x) <= _real(0.0, x), _real(-math.inf, x), y))


def _odd_ratio(name: str, x: Expr, limit: float, p: Sequence[float], q: Sequence[float]) -> Expr:
    """x * P(x^2) / Q(x^2) within +-limit, where it reaches +-1."""
    steps = _Steps()
    x = steps.let(f"{name}_in", x)
    inside = steps.let(f"{name}_x", _clamped(x, -limit, limit))
    square = steps.let(f"{name}_s", inside * inside)
    # the quotient first: it is near a constant at 0, so that a subnormal argument keeps its bits
    ratio = steps.let(f"{name}_y", inside * (_horner(p, square) / _horner(q, square)))
    return steps.within(_clamped(ratio, -1.0, 1.0))


def vector_erf(x: Expr) -> Expr:
    """The error function."""
    return _odd_ratio("erf", x, _ERF_LIMIT, _ERF_P, _ERF_Q)


def vector_tanh(x: Expr) -> Expr:
    """The hyperbolic tangent."""
    return _odd_ratio("tanh", x, _TANH_LIMIT, _TANH_P, _TANH_Q)


def vector_sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    one = _real(1.0, x)
    return one / (one + vector_exp(_real(0.0, x) - x))
