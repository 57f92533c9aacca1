"""What an `lbc.fused_quantize` computes of its operands, row by row, before it quantizes.

A prologue is a value: the pass that finds one, the op that carries it and the kernel that runs it
share it, and two equal ones are one kernel.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prologue:
    """row = norm(sum), sum = activation(x) combine other; the operands are x[, other][, gamma][,
    beta].

    The float values that other readers want are results as well: `keeps_sum`, `keeps_row`. Without
    a norm sum and row are one, and only `keeps_row` is said.
    """

    activation: str = "none"  # of `ops.EPILOGUES`
    combine: str = "none"  # or "add", "multiply": with a second operand of x's shape
    norm: str = "none"  # or "layer_norm" (gamma, beta), "rms_norm" (gamma): along the last axis
    epsilon: float = 0.0
    keeps_sum: bool = False
    keeps_row: bool = False

    @property
    def name(self) -> str:
        """For symbols: silu_multiply, add_layer_norm, rms_norm."""
        parts = (self.activation, self.combine, self.norm)
        return "_".join(part for part in parts if part != "none")

    @property
    def rows(self) -> int:
        """How many operands have x's shape; those behind them have one axis."""
        return 1 if self.combine == "none" else 2

    @property
    def kept(self) -> int:
        """How many float results it has."""
        return int(self.keeps_sum) + int(self.keeps_row)

    def attributes(self) -> dict[str, object]:
        """For a call's attributes; `prologue_of` is the inverse."""
        return asdict(self)


def prologue_of(attrs: Any) -> Prologue:
    """The prologue that a call carries."""
    return Prologue(
        activation=str(attrs["activation"]),
        combine=str(attrs["combine"]),
        norm=str(attrs["norm"]),
        epsilon=float(attrs["epsilon"]),
        keeps_sum=bool(attrs["keeps_sum"]),
        keeps_row=bool(attrs["keeps_row"]),
    )
