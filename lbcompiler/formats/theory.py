"""How good a format can be: QSNR as a function of the crest factor (arXiv 2510.25602, section 4).

QSNR = -10 log10(|x - xq|^2 / |x|^2), in dB. The elements are Gaussian with deviation sigma; the
crest factor kappa is max|x| / sigma of a block; rho >= 1 is the stored scale over the ideal one
(never smaller). An integer has the error of a uniform grid, which grows with kappa; a float one
relative to each element until its grid runs out of exponents. So the two cross, and below the
crossover integers win: kappa 7.55 at 8 bits, 1.96 at 6, 2.04 at 4 (MX) and 2.39 (NV).

An E4M3 scale leaves the block's maximum free of error, one element in `block`. The paper's text
takes its rho for 1; the published 2.39 needs the 1.05 of its code, so that is what stands here. The
formulas are the paper's with its rounded constants (exact ones move 7.55 to 7.54) and two
simplifications that a test measures: an integer grid of 2^(b-1) steps (it has one less), and a mean
relative float error of 2^-2M / 24 (over an octave of scales it is 8 % more, 0.34 dB).
"""

import math

from lbcompiler.errors import ConfigError
from lbcompiler.formats.block_format import BlockFormat

RHO = {"e8m0": 1.5, "e4m3": 1.05}  # by scale type
ITERATIONS = 60  # of a bisection: halves the interval past the precision of a float


def qsnr(fmt: BlockFormat, kappa: float, rho: float | None = None) -> float:
    """QSNR in dB of Gaussian blocks with crest factor `kappa`; `rho` defaults to the paper's."""
    spread = kappa * (RHO[fmt.scale] if rho is None else rho)
    exact = 1 / fmt.block if fmt.has_tensor_scale else 0.0  # elements without error
    noise = _integer_noise if fmt.element.is_integer else _float_noise
    return -10 * math.log10(noise(fmt, kappa, spread, exact))


def crossover(
    first: BlockFormat, second: BlockFormat, low: float = 1.0, high: float = 12.0
) -> float:
    """The crest factor in [low, high] at which two formats have the same QSNR, by bisection.

    Raises ConfigError if the same format is better at both ends.
    """

    def advantage(kappa: float) -> float:
        return qsnr(first, kappa) - qsnr(second, kappa)

    if advantage(low) * advantage(high) > 0:
        raise ConfigError(
            f"{first.name} and {second.name} do not cross between crest factors {low} and {high}."
        )
    rising = advantage(low) < 0
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        if (advantage(middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _integer_noise(fmt: BlockFormat, _: float, spread: float, exact: float) -> float:
    """4.78 + 6.02 b - 20 log10(rho kappa) dB: uniform errors in steps of rho kappa / 2^(b-1)."""
    return (1 - exact) * spread**2 * 10 ** (-(4.78 + 6.02 * fmt.element.bits) / 10)


def _float_noise(fmt: BlockFormat, kappa: float, spread: float, exact: float) -> float:
    """Relative error above the smallest normal, uniform below, all of it lost in the dead zone."""
    element = fmt.element
    unit = spread / element.max  # the stored scale over sigma
    normal = unit * 2.0**element.smallest_exponent
    dead = unit * element.smallest / 2
    energy = 1 - _energy_below(normal) - exact * kappa**2
    subnormals = _mass_below(normal) - _mass_below(dead)
    relative = 4.0**-element.mantissa_bits / 24
    uniform = (unit * element.smallest) ** 2 / 12
    return relative * energy + uniform * subnormals + _energy_below(dead)


def _mass_below(t: float) -> float:
    """P(|x| < t) of N(0, 1)."""
    return math.erf(t / math.sqrt(2))


def _energy_below(t: float) -> float:
    """E[x^2; |x| < t] of N(0, 1)."""
    return _mass_below(t) - 2 * t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
