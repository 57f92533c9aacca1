"""What `lbc bench gemm` finds of one linear: ours and the peers', beside the ceilings of the
machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.configs import Shape

OURS, QUANTIZE, CEILING = "ours", "quantize", "ceiling "


@dataclass(frozen=True)
class PeerSpeed:
    """`ratio` above 1: ours is faster."""

    ms: float
    gops: float
    ratio: float


@dataclass(frozen=True)
class GemmRow:
    """One format and shape; see docs/json.md. What the instruction set has no ceiling for is None.

    `ms` is the whole linear, `quantize_ms` the part of it that quantizes the activations.
    """

    shape: Shape
    format: str
    act_format: str
    isa: str
    config_source: str
    threads: int
    cold: bool
    ms: float
    quantize_ms: float
    gops: float
    ceiling: str
    ceiling_gops: float | None
    ceiling_share: float | None
    weight_gb_s: float
    dram_gb_s: float
    dram_share: float
    peers: dict[str, PeerSpeed]
    missing: dict[str, str] = field(default_factory=dict)  # the reason of a peer that could not
    memory: str = "read"  # what `dram_gb_s` is of: "read" or "copy"
    is_graph: bool | None = None  # of a GPU: launches were captured, only its own gaps are timed

    @classmethod
    def of(
        cls,
        shape: Shape,
        formats: tuple[BlockFormat, BlockFormat | None],
        linear: Any,
        cold: int,
        calls: Mapping[str, float],
        peak: float | None,
        dram: float,
        **told: Any,
    ) -> "GemmRow":
        """linear: the `TimedLinear` of a target; calls: seconds of one call of OURS, of QUANTIZE
        where there is one, and of each peer; peak: GOP/s; dram: GB/s; told: the other fields.
        """
        (m, k, n), (weight, act), seconds = shape, formats, calls[OURS]
        operations, weight_rate = 2e-9 * m * k * n, linear.weight_bytes / seconds * 1e-9
        return cls(
            shape=shape,
            format=weight.name,
            act_format=WEIGHT_ONLY if act is None else act.name,
            config_source=linear.config_source,
            cold=0 < cold <= linear.weight_bytes * linear.copies,
            ms=seconds * 1e3,
            quantize_ms=calls.get(QUANTIZE, 0.0) * 1e3,
            gops=operations / seconds,
            ceiling_gops=peak,
            ceiling_share=None if peak is None else operations / seconds / peak,
            weight_gb_s=weight_rate,
            dram_gb_s=dram,
            dram_share=weight_rate / dram,
            peers={
                name: PeerSpeed(call * 1e3, operations / call, call / seconds)
                for name, call in calls.items()
                if name not in (OURS, QUANTIZE)
            },
            **told,
        )
