"""What a quantizer is asked: a weight, what its codes may say, and what the layer reads."""

from collections.abc import Callable
from dataclasses import dataclass

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.formats.elements import Floats
from lbcompiler.formats.scales import ScaleType

SEARCHED = ("mse", "four_over_six", "sweep")  # the scale rules that search
BY_DEFAULT: dict[ScaleType, str] = {"e8m0": "mse", "e4m3": "sweep"}


def searched_rule(fmt: BlockFormat, rule: str) -> str:
    """`rule` where it searches, else the format's own search."""
    return rule if rule in SEARCHED else BY_DEFAULT[fmt.scale]


@dataclass(frozen=True, eq=False)
class Problem:
    """min over what the format can say of ||W X - W^ X^||^2.

    weight: (N, K) float32, finite, already smoothed and rotated. rule: a name of `fmt.rules`.
    hessian: (K, K) float32, the mean over tokens of x^ x^^T, where x^ is what the layer reads
    (rotated, maybe quantized). cross: (K, K) float32, the mean of x x^^T, x being the float model's
    own input; None where x is x^."""

    weight: Floats
    fmt: BlockFormat
    rule: str
    hessian: Floats | None = None
    cross: Floats | None = None


Quantizer = Callable[[Problem], Quantized]


@dataclass(frozen=True)
class Method:
    """A quantizer; whether it needs `Problem.hessian`, whether it is made for rotated weights (its
    name asks for `--hadamard auto`), whether it only knows scale rules that search, and the formats
    without a tensor scale whose weights it gives one. about: a few words for `--help` and the
    shell.
    """

    quantize: Quantizer
    about: str
    needs_hessian: bool = False
    rotates: bool = False
    searches: bool = False
    scales: tuple[str, ...] = ()

    def rule(self, fmt: BlockFormat, rule: str) -> str:
        """The scale rule that it really uses where `rule` is given."""
        return searched_rule(fmt, rule) if self.searches else rule
