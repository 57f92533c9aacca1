"""What an `lbc.fused_quantize` computes of its operands, row by row, before it quantizes.

A prologue is a value: the pass that finds one, the op that carries it and the kernel that runs it
share it, and two equal ones are one kernel.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lbcompiler.ir.rotation import Rotation, rotation_of


@dataclass(frozen=True)
class Prologue:
    """row = norm(sum), sum = activation(x) combine other; the operands are x[, other][, gamma][,
    beta]. What is quantized is the row, or the row rotated.

    The float values that other readers want are results as well: `keeps_sum`, `keeps_row`, the row
    before its rotation. Without a norm sum and row are one, and only `keeps_row` is said.
    """

    activation: str = "none"  # of `ops.EPILOGUES`
    combine: str = "none"  # or "add", "multiply": with a second operand of x's shape
    norm: str = "none"  # or "layer_norm" (gamma, beta), "rms_norm" (gamma): along the last axis
    epsilon: float = 0.0
    rotation: Rotation | None = None
    keeps_sum: bool = False
    keeps_row: bool = False

    @property
    def name(self) -> str:
        """For symbols: silu_multiply, add_layer_norm, rms_norm_hadamard32."""
        rotation = "none" if self.rotation is None else self.rotation.name
        parts = (self.activation, self.combine, self.norm, rotation)
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
        fields = asdict(self)
        del fields["rotation"]
        return fields | ({} if self.rotation is None else self.rotation.attributes())


def prologue_of(attrs: Any) -> Prologue:
    """The prologue that a call carries."""
    return Prologue(
        activation=str(attrs["activation"]),
        combine=str(attrs["combine"]),
        norm=str(attrs["norm"]),
        epsilon=float(attrs["epsilon"]),
        rotation=rotation_of(attrs) if "size" in attrs.keys() else None,  # noqa: SIM118  # no dict
        keeps_sum=bool(attrs["keeps_sum"]),
        keeps_row=bool(attrs["keeps_row"]),
    )
