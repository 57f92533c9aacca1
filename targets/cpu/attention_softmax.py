"""The running softmax of an attention kernel: a query a lane, a block of keys at a time.

After each block the largest score so far may have grown; what was summed up before is then worth
less by the factor exp(old largest - largest).
"""

from dataclasses import dataclass

from tvm import tirx

from lbcompiler.targets.cpu.across_lanes import larger
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Variable,
    bits_of,
    bound,
    fma,
    like,
    real_of,
    splat,
    variable,
)

LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # Cephes' expf.c, as in vector_math
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
ROUND_BITS = 0x4B400000
SMALLEST = -87.33654  # ln 2^-126
INFINITY = float("inf")


def exp_of_difference(x: Expr) -> Expr:
    """e^x for x <= 0 within 1.5 ulp; 0 where it is below 2^-126; NaN stays.

    Shorter than `vector_math.vector_exp`, which is for any x, and the same bits on every
    instruction set.
    """
    rounded = bound(fma(x, like(x, "float32", LOG2_E), like(x, "float32", ROUND)))
    n = bound(rounded - like(x, "float32", ROUND))
    r = fma(n, like(x, "float32", -LN2_LOW), fma(n, like(x, "float32", -LN2_HIGH), x))
    r = bound(r)
    p = like(x, "float32", EXP[0])
    for coefficient in (*EXP[1:], 1.0, 1.0):
        p = fma(p, r, like(x, "float32", coefficient))
    exponent = (bits_of(rounded) - like(x, "int32", ROUND_BITS - 127)) << like(x, "int32", 23)
    y = bound(p * real_of(exponent))
    return tirx.Select(x < like(x, "float32", SMALLEST), like(x, "float32", 0.0), y)


def finite_or_zero(largest: Expr) -> Expr:
    """What to take off the scores: nothing while all of them are -inf, whose weights are then 0."""
    nothing = like(largest, "float32", -INFINITY)
    return bound(tirx.Select(largest <= nothing, like(largest, "float32", 0.0), largest))


@dataclass(frozen=True)
class Running:
    """The largest score and the sum of weights of each lane; `factor` is the last block's."""

    largest: Variable
    total: Variable
    factor: Variable

    @classmethod
    def start(cls, lanes: int) -> "Running":
        zero = splat(0.0, "float32", lanes)
        nothing = splat(-INFINITY, "float32", lanes)
        return cls(variable(nothing), variable(zero), variable(zero))

    def raise_to(self, largest: Expr) -> Expr:
        """Take a block's largest score in; what to take off this block's scores."""
        old = bound(self.largest.get())
        new = bound(larger(old, largest))
        offset = finite_or_zero(new)
        self.factor.set(exp_of_difference(bound(old - offset)))
        self.total.set(bound(self.total.get() * self.factor.get()))
        self.largest.set(new)
        return offset

    def add(self, weight: Expr) -> None:
        self.total.set(self.total.get() + weight)
