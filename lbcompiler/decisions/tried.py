"""What is tried for every group, by what was asked for."""

from collections.abc import Container

from lbcompiler.config import CompileConfig
from lbcompiler.decisions.candidates import Options
from lbcompiler.quantizers import QUANTIZERS

ROTATIONS = (16, 32, 64, 128)  # tried by `--hadamard auto`
# Of the formats that have them, with a Hessian to weigh by. `sweep` reaches both of four_over_six's
# scales, and had the lower error on every layer of nvfp4 looked at (docs/decisions.md).
WEIGHT_RULES = ("sweep", "mse")
ACT_RULES = ("absmax", "four_over_six", "rceil")


def options_of(config: CompileConfig, on_the_fly: Container[str]) -> Options:
    """`on_the_fly`: the scale rules of activations that the target's kernels have."""
    rotations: tuple[int, ...] = ()
    if config.rotates:
        size = config.hadamard
        rotations = (size,) if isinstance(size, int) else ROTATIONS
    searched = WEIGHT_RULES if QUANTIZERS[config.quantizer].needs_hessian else ()
    act_rules = (config.act_scale_rule,) if config.act_scale_rule else ACT_RULES
    return Options(
        quantizer=config.quantizer,
        rotations=rotations,
        forced=isinstance(config.hadamard, int),
        seed=config.hadamard_seed,
        rule=config.scale_rule or "",
        rules=searched,
        act_rules=tuple(rule for rule in act_rules if rule in on_the_fly),
        outliers=config.outliers,
    )
