"""What an analysis is: plain figures, which are the JSON of `lbc analyze --json` and what the page
shows (docs/json.md describes every field)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lbcompiler.artifact import judged
from lbcompiler.decisions.losses import alone_name
from lbcompiler.report.outliers import Outliers


@dataclass(frozen=True)
class TensorFigures:
    """Of a weight, or of the input that a layer reads.

    crest_16, crest_32: mean over blocks of max|x| / rms(x), None where all are zero; kurtosis: mean
    over rows, 3 of a Gaussian. qsnr_db, qsnr_hadamard_db: by format, of plain rounding and of
    rounding behind a block Hadamard; None where there is no such rotation, or all is zero.
    """

    crest_16: float | None
    crest_32: float | None
    kurtosis: float
    qsnr_db: Mapping[str, float | None]
    qsnr_hadamard_db: Mapping[str, float | None]


@dataclass(frozen=True)
class Chosen:
    """What a layer becomes, and why; format "float32" where it stays as it is. `outliers` counts
    the channels of its input that are split off.
    """

    format: str
    act_format: str
    quantizer: str
    scale_rule: str
    act_scale_rule: str
    hadamard: int
    outliers: int
    smoothing: str
    reason: str


@dataclass(frozen=True)
class LayerFigures:
    """One layer; `group` is the first of the layers that read the same input."""

    name: str
    op: str
    shape: tuple[int, ...]
    group: str
    weight: TensorFigures
    activation: TensorFigures
    outliers: tuple[Outliers, ...]
    chosen: Chosen | None


@dataclass(frozen=True)
class OptionFigures:
    """A group in a format: how it would be quantized, bits of an element, its layers' own output
    error (relative, mean over them) with that and with plain rounding, and what it alone does to
    the model: the KL of a token in nats, None without logits, and noise over signal of the worst
    output; or, where sensitivity is not "model", noise as that has it. `is_split`: with outliers
    of its input split off where that helps, beside the same without."""

    format: str
    act_format: str
    quantizer: str
    scale_rule: str
    hadamard: int
    outliers: int
    is_split: bool
    bits: float
    error: float
    plain_error: float
    kl: float | None
    noise: float

    @property
    def name(self) -> str:
        return named(self.format, self.is_split)

    @property
    def cost(self) -> float:
        """What the compiler minimizes: the KL where there is one."""
        return self.noise if self.kl is None else self.kl


@dataclass(frozen=True)
class GroupFigures:
    """Layers that read one input and so have one format; an option for every candidate format."""

    layers: tuple[str, ...]
    elements: int
    options: tuple[OptionFigures, ...]

    @property
    def name(self) -> str:
        return self.layers[0]


@dataclass(frozen=True)
class PlanFigures:
    """A measured plan: formats by layer, and the whole model under it. `name` is the format of one
    that has the same everywhere (and "split" behind it where outliers are), else ""; `split`: the
    layers whose outliers are split off.
    """

    name: str
    effective_bits: float
    kl: float | None
    qsnr_db: float
    plan: Mapping[str, str] = field(repr=False)
    split: tuple[str, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Budget:
    """The one that was asked for, e.g. effective_bits 5."""

    name: str
    limit: float


@dataclass(frozen=True)
class Analysis:
    """groups: the most sensitive first, by what they cost in `ranked_by`, the candidate of fewest
    bits; sensitivity: "model", "output" or "fisher", what those costs are of. front: few bits
    first, none beats another; chosen: None where no budget said which. residual, smoothing, gate:
    what was decided by the whole model, as in a manifest; of these plans chosen alone has passed
    the gate.
    """

    model: str
    sha256: str
    version: str
    calibration: str
    budget: Budget | None
    formats: tuple[str, ...]
    ranked_by: str
    sensitivity: str
    layers: tuple[LayerFigures, ...]
    groups: tuple[GroupFigures, ...]
    uniform: tuple[PlanFigures, ...]
    front: tuple[PlanFigures, ...]
    chosen: PlanFigures | None
    residual: str = ""
    smoothing: str = ""
    gate: str = ""

    @property
    def cost_name(self) -> str:
        """What the cost of an option is, with its unit."""
        return alone_name(self.sensitivity, all(plan.kl is not None for plan in self.uniform))

    @property
    def judged(self) -> dict[str, str]:
        """What was decided by the model's output as a whole, and what was measured of it."""
        return judged(self)


def named(fmt: str, is_split: bool) -> str:
    """`nvfp4`, or `nvfp4 split` with outliers split off."""
    return f"{fmt} split" if is_split else fmt


def members_of(layers: Sequence[str]) -> str:
    """`layers.0.attention.query +2`: the first of a group, and how many share its input."""
    more = len(layers) - 1
    return layers[0] + (f" +{more}" if more else "")


def tensor_of(layer: LayerFigures, which: str) -> TensorFigures:
    """Of "weight" or "activation"."""
    return layer.weight if which == "weight" else layer.activation
