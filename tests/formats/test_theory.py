"""The theory of arXiv 2510.25602 against its figures and simulation, and the measured anchors."""

import math

import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, BlockFormat
from lbcompiler.formats.theory import crossover, qsnr

CROSSOVERS = [  # integer, float, crest factor and QSNR where they meet (figure 3)
    ("mxint8", "mxfp8", 7.55, 31.86),
    ("mxint6", "mxfp6", 1.96, 31.54),
    ("mxint4", "mxfp4", 2.04, 19.14),
    ("nvint4", "nvfp4", 2.39, 21.14),
]


def decibels(noise: float, energy: float) -> float:
    return -10 * math.log10(noise / energy)


@pytest.mark.parametrize(("integer", "floating", "kappa", "meeting"), CROSSOVERS)
def test_crossovers_of_the_paper(integer: str, floating: str, kappa: float, meeting: float) -> None:
    first, second = FORMATS[integer], FORMATS[floating]
    # NVFP4's formula takes kappa^2 / 16 of the energy out, so it ends below kappa = 4
    high = 3.9 if first.has_tensor_scale else 12.0
    found = crossover(first, second, high=high)
    assert round(found, 2) == kappa
    assert round(qsnr(first, found), 2) == meeting
    assert qsnr(first, found * 0.95) > qsnr(second, found * 0.95)  # integers win below
    assert qsnr(first, found * 1.05) < qsnr(second, found * 1.05)


def test_rho_1_of_the_papers_text_gives_another_crossover() -> None:
    """2.46 at 21.31 dB: the 2.39 of its figure needs the rho 1.05 of its code."""
    first, second = FORMATS["nvint4"], FORMATS["nvfp4"]
    low, high = 2.0, 3.0
    for _ in range(50):
        middle = (low + high) / 2
        wins = qsnr(first, middle, rho=1) > qsnr(second, middle, rho=1)
        low, high = (middle, high) if wins else (low, middle)
    assert round(low, 2) == 2.46
    assert round(qsnr(first, low, rho=1), 2) == 21.31


def test_the_order_of_the_two_does_not_matter() -> None:
    first, second = FORMATS["mxint8"], FORMATS["mxfp8"]
    assert crossover(first, second) == pytest.approx(crossover(second, first), abs=1e-12)


def test_formats_that_do_not_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match="mxint8 and mxint4 do not cross"):
        crossover(FORMATS["mxint8"], FORMATS["mxint4"])


@pytest.mark.parametrize(("name", "plateau"), [("mxfp8", 31.86), ("mxfp8_e5m2", 25.84)])
def test_a_float_with_range_to_spare_has_13_80_plus_6_02_m(name: str, plateau: float) -> None:
    assert round(qsnr(FORMATS[name], 3), 2) == plateau


def test_nvfp4_gains_from_a_larger_crest_factor() -> None:
    """Below 4 its QSNR rises with kappa, which is why a rotation makes NVFP4 worse."""
    rising = [qsnr(FORMATS["nvfp4"], kappa) for kappa in (1.5, 2, 2.5, 3, 3.5)]
    assert rising == sorted(rising)


OCTAVE = np.exp2((np.arange(16) + 0.5) / 16)  # rho over an octave, as E8M0 makes it
SAMPLING = 0.05  # dB: the error of 2^20 samples has a deviation of 0.3 % at most, 0.013 dB
GRID = {  # an integer grid has 2^b - 2 steps, the formula 2^b
    name: 20 * math.log10(FORMATS[name].element.max / 2 ** (FORMATS[name].element.bits - 1))
    for name in ("mxint8", "mxint6", "mxint4", "nvint4")
}
RELATIVE = 10 * math.log10((3 / 4) / (2 * math.log(2)) / (1 / 2))  # 0.34 dB


def model_deviation(fmt: BlockFormat, kappa: float) -> float:
    """Simulated minus theoretical QSNR of N(0, 1) under the scales rho * kappa / max, in dB."""
    random = np.random.default_rng(int(kappa * 10))
    simulated = theoretical = 0.0
    for rho in OCTAVE:
        x = random.standard_normal(1 << 16).astype(np.float32)
        scale = np.float32(rho * kappa / fmt.element.max)
        simulated += float(np.mean((fmt.element.round(x / scale) * scale - x) ** 2))
        theoretical += 10 ** (-qsnr(fmt, kappa, rho) / 10)
    return decibels(simulated, theoretical)


KAPPAS = pytest.mark.parametrize("kappa", [4.5, 6.0, 8.0])  # beyond 4.5 nothing is clipped


@KAPPAS
@pytest.mark.parametrize("name", ["mxint8", "mxint6", "mxint4"])
def test_simulated_integers_miss_the_formula_by_their_missing_step(name: str, kappa: float) -> None:
    """0.07, 0.27 and 1.16 dB; and 0.01 dB that the paper's 4.78 + 6.02 b has lost by rounding."""
    assert abs(model_deviation(FORMATS[name], kappa) - GRID[name]) <= SAMPLING + 0.01


@KAPPAS
@pytest.mark.parametrize("name", ["mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp6_e3m2", "mxfp4"])
def test_simulated_floats_lie_within_a_third_of_a_decibel(name: str, kappa: float) -> None:
    """step^2 / x^2 over a binade is between 1 and 1/4 of 4^-M. The formula takes the middle, 1/2;
    over an octave of scales its mean is (3/4) / (2 ln 2) = 0.541, worth 0.34 dB. What lies among
    the subnormals has no such error: so the deviation is between 0 and -0.34 dB.
    """
    assert -RELATIVE - SAMPLING <= model_deviation(FORMATS[name], kappa) <= SAMPLING


def blocks_with_crest(fmt: BlockFormat, kappa: float) -> np.ndarray:
    """Gaussian blocks whose max / rms lies within 0.05 of kappa, all over an octave of sizes."""
    random = np.random.default_rng(4)
    x = random.standard_normal((1 << 17, fmt.block)).astype(np.float32)
    crest = np.abs(x).max(axis=1) / np.sqrt((x**2).mean(axis=1))
    near = x[np.abs(crest - kappa) < 0.05]
    return near * np.exp2(random.uniform(0, 1, (len(near), 1))).astype(np.float32)


def measured(fmt: BlockFormat, x: np.ndarray) -> float:
    error = (fmt.dequantize(fmt.quantize(x)) - x).astype(np.float64)
    return decibels(float((error**2).sum()), float((x.astype(np.float64) ** 2).sum()))


@pytest.mark.parametrize("kappa", [2.1, 2.4, 2.7])
def test_real_blocks_of_nvint4(kappa: float) -> None:
    """rho 1: the scale is as often rounded down as up, so the only bias is the missing step. The
    E4M3 rounding (1/16 at most, 1/28 rms) moves the maximum off its grid point: 0.15 dB.
    """
    fmt = FORMATS["nvint4"]
    expected = qsnr(fmt, kappa, rho=1) + GRID["nvint4"]
    assert -0.2 <= measured(fmt, blocks_with_crest(fmt, kappa)) - expected <= SAMPLING


@pytest.mark.parametrize("kappa", [2.1, 2.4, 2.7])
def test_real_blocks_of_nvfp4(kappa: float) -> None:
    """The relative error's 0.34 dB, the E4M3 rounding's 0.15, and 0.2 of the choice of rho."""
    fmt = FORMATS["nvfp4"]
    assert -RELATIVE - 0.35 <= measured(fmt, blocks_with_crest(fmt, kappa)) - qsnr(fmt, kappa) <= 0


@pytest.mark.parametrize("name", ["mxint8", "mxint6", "mxfp8", "mxfp6", "mxfp4"])
@pytest.mark.parametrize("kappa", [2.0, 2.4, 2.8])
def test_real_blocks_of_mx(name: str, kappa: float) -> None:
    """The paper's single rho 1.5 for the whole octave: within half a decibel."""
    fmt = FORMATS[name]
    assert abs(measured(fmt, blocks_with_crest(fmt, kappa)) - qsnr(fmt, kappa)) <= 0.5


ANCHORS = {  # QSNR in dB on N(0, 1), on Laplace, on Laplace after a block random Hadamard
    ("mxint8", "rceil"): (41.85, 39.95, 42.18),
    ("mxfp8", "rceil"): (31.52, 31.53, 31.54),
    ("mxfp8", "floor"): (30.40, 30.08, 30.53),
    ("mxint6", "rceil"): (29.60, 27.72, 29.97),
    ("mxint6", "mse"): (30.13, 28.21, 30.46),
    ("mxfp6", "rceil"): (30.94, 30.25, 31.02),
    ("mxint4", "rceil"): (16.68, 14.97, 17.02),
    ("mxint4", "floor"): (17.79, 16.04, None),
    ("mxint4", "mse"): (18.64, 16.80, 18.87),
    ("mxfp4", "rceil"): (18.66, 17.57, 18.71),
    ("mxfp4", "floor"): (18.70, 17.97, 18.83),
    ("mxfp4", "mse"): (19.01, 18.23, 19.09),
    ("nvint4", "absmax"): (21.26, 19.77, 21.59),
    ("nvint4", "sweep"): (21.73, 20.13, 22.09),
    ("nvfp4", "absmax"): (20.43, 20.65, 20.35),
    ("nvfp4", "four_over_six"): (21.21, 21.19, 21.18),
    ("nvfp4", "sweep"): (21.81, 21.67, 21.81),
}


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    """2^20 samples; every 512 share a scale, log-uniform over four octaves, as channels would."""
    random = np.random.default_rng(0)
    scale = np.exp2(random.uniform(-2, 2, (2048, 1))).astype(np.float32)
    return {
        "normal": random.standard_normal((2048, 512), dtype=np.float32) * scale,
        "laplace": random.laplace(size=(2048, 512)).astype(np.float32) * scale,
    }


def hadamard_matrix(n: int) -> np.ndarray:
    """The orthonormal Sylvester Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(np.float32(n))


def rotated(x: np.ndarray, block: int) -> np.ndarray:
    signs = np.random.default_rng(1).choice(np.float32([-1, 1]), (block, 1))
    return (x.reshape(-1, block) @ (signs * hadamard_matrix(block))).reshape(x.shape)


@pytest.mark.parametrize(("name", "rule"), ANCHORS)
def test_measured_anchors(name: str, rule: str, samples: dict[str, np.ndarray]) -> None:
    """All 50 within 0.1 dB, error and energy summed over all samples before the ratio.

    The largest difference is MXINT4 floor on N(0, 1): 17.88 for 17.79. Over eight seeds it has mean
    17.85 and deviation 0.03 (2048 scales are few), so one published sample may well be 0.06 below.
    """
    fmt = FORMATS[name]
    laplace = samples["laplace"]
    for expected, x in zip(
        ANCHORS[name, rule], (samples["normal"], laplace, rotated(laplace, fmt.block)), strict=True
    ):
        if expected is None:  # not published
            continue
        error = (fmt.dequantize(fmt.quantize(x, rule)) - x).astype(np.float64)
        found = decibels(float((error**2).sum()), float((x.astype(np.float64) ** 2).sum()))
        assert abs(found - expected) <= 0.1
