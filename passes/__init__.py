"""Target-independent passes: one rewrite a file, and their order in one place."""

from collections.abc import Callable, Mapping

from lbcompiler.formats import Quantized
from lbcompiler.passes.append_in_place import AppendInPlace
from lbcompiler.passes.apply_decisions import ApplyDecisions
from lbcompiler.passes.canonicalize import Canonicalize
from lbcompiler.passes.channels_last import ChannelsLast
from lbcompiler.passes.fold_batch_norm import FoldBatchNorm
from lbcompiler.passes.fold_constants import FoldConstants
from lbcompiler.passes.fold_rotations import FoldRotations
from lbcompiler.passes.fuse_activation_quantize import FuseActivationQuantize
from lbcompiler.passes.fuse_attention import FuseAttention
from lbcompiler.passes.fuse_linear import FuseLinear
from lbcompiler.passes.insert_qdq import InsertQDQ
from lbcompiler.passes.lift_weights import LiftWeights
from lbcompiler.passes.pack_weights import PackWeights
from lbcompiler.passes.quantize_weights import QuantizeWeights
from lbcompiler.passes.recognize_activations import RecognizeActivations
from lbcompiler.passes.recognize_norms import RecognizeNorms
from lbcompiler.passes.rotate import Rotate
from lbcompiler.passes.rotate_residual import RotateResidual
from lbcompiler.passes.select_formats import SelectFormats
from lbcompiler.passes.smooth import Smooth
from lbcompiler.passes.split_outliers import SplitOutliers
from lbcompiler.pipeline import Pass
from lbcompiler.quantizers import Quantizer

# What every model goes through before its layers are known, and behind that what a plan decides.
PREPARE = (
    FoldBatchNorm(),
    FoldConstants(),
    Canonicalize(),
    RecognizeActivations(),
    RecognizeNorms(),
    AppendInPlace(),  # before attention, which then reads the memory where it lies
    FuseAttention(),
    ChannelsLast(),
    Canonicalize(),  # a convolution's bias that stood behind a permutation
    FoldConstants(),  # weights that were turned to be channels-last
)


# The same for a model that is observed: what a decoder grows comes in and goes out as it was.
OBSERVE = tuple(step for step in PREPARE if not isinstance(step, AppendInPlace))


def quantize(
    quantizer: Quantizer, known: Mapping[str, Callable[[], Quantized]] | None = None
) -> tuple[Pass, ...]:
    """From planned layers to linears of codes; `known` are codes by layer. What a target fuses
    comes behind.
    """
    weights = QuantizeWeights(quantizer, known or {})
    return (weights, InsertQDQ(), FuseLinear())


__all__ = [
    "OBSERVE",
    "PREPARE",
    "AppendInPlace",
    "ApplyDecisions",
    "Canonicalize",
    "ChannelsLast",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldRotations",
    "FuseActivationQuantize",
    "FuseAttention",
    "FuseLinear",
    "InsertQDQ",
    "LiftWeights",
    "PackWeights",
    "QuantizeWeights",
    "RecognizeActivations",
    "RecognizeNorms",
    "Rotate",
    "RotateResidual",
    "SelectFormats",
    "Smooth",
    "SplitOutliers",
    "quantize",
]
