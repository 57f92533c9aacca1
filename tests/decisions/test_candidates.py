"""The gate: on inputs made so that a rotation hurts it goes, where it helps it stays."""

import numpy as np
import pytest

from lbcompiler.config import make_config
from lbcompiler.decisions.candidates import (
    GATE,
    GroupProblem,
    Options,
    relative_error,
    solve,
)
from lbcompiler.decisions.tried import WEIGHT_RULES, options_of
from lbcompiler.formats import format_named
from lbcompiler.ir.rotation import Rotation
from lbcompiler.quantizers import QUANTIZERS
from lbcompiler.targets import targets_named

ROTATIONS = (16, 32)
LEARNED, JUDGED, K, N = 2048, 256, 128, 64


def group(kind: str, seed: int = 0) -> GroupProblem:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((LEARNED + JUDGED, K)).astype(np.float32)
    if kind == "outliers":  # one loud channel in every block: its neighbours are rounded away
        x[:, ::32] *= 40
    elif kind == "sparse":  # the others are zero: exact as they are, dense once rotated
        x *= draw.random(x.shape) < 1 / 32
    weight = draw.standard_normal((N, K)).astype(np.float32)
    if kind == "sparse":
        weight = np.sign(weight)
    learned = x[:LEARNED]
    return GroupProblem((weight,), learned.T @ learned / LEARNED, x[LEARNED:])


def only(problem: GroupProblem, fmt: str, options: Options):
    (found,) = solve(problem, [(fmt, fmt)], options)
    return found


@pytest.mark.parametrize("fmt", ["mxint8", "nvint4", "mxfp4"])
def test_a_rotation_that_helps_is_kept(fmt: str) -> None:
    found = only(group("outliers"), fmt, Options(rotations=ROTATIONS))
    assert found.choice.hadamard in ROTATIONS
    assert found.error < GATE * found.plain_error


@pytest.mark.parametrize("fmt", ["mxint8", "nvint4", "nvfp4", "mxfp4"])
def test_a_rotation_that_hurts_is_dropped(fmt: str) -> None:
    problem = group("sparse")
    found = only(problem, fmt, Options(rotations=ROTATIONS))
    forced = only(problem, fmt, Options(rotations=(32,), forced=True))
    assert found.choice.hadamard == 0
    assert forced.choice.hadamard == 32
    assert forced.error > found.error


@pytest.mark.parametrize("kind", ["plain", "outliers", "sparse"])
@pytest.mark.parametrize("fmt", ["mxint8", "mxfp6", "nvfp4", "nvint4", "mxfp4"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_never_worse_than_plain_rounding(kind: str, fmt: str, quantizer: str) -> None:
    options = Options(quantizer=quantizer, rotations=ROTATIONS, rules=WEIGHT_RULES)
    found = only(group(kind), fmt, options)
    assert found.error <= found.plain_error


def test_the_error_is_that_of_the_layer_as_it_will_run() -> None:
    problem = group("outliers")
    found = only(problem, "nvfp4", Options(quantizer="gptq", rotations=ROTATIONS))
    fmt, choice = format_named("nvfp4"), found.choice
    x = problem.sample
    if choice.hadamard:
        x = Rotation(choice.hadamard).apply(x)
    y = fmt.rounded(x, choice.act_rule, per_row=True) @ fmt.dequantize(found.weights[0]).T
    assert found.error == relative_error(problem.sample @ problem.weights[0].T, y)


@pytest.mark.parametrize("quantizer", [n for n, m in QUANTIZERS.items() if not m.searches])
def test_a_scale_rule_that_was_asked_for_is_the_one_used(quantizer: str) -> None:
    options = Options(quantizer=quantizer, rule="floor", rotations=ROTATIONS)
    assert only(group("outliers"), "mxfp4", options).choice.rule == "floor"


@pytest.mark.parametrize("quantizer", [n for n, m in QUANTIZERS.items() if m.searches])
def test_a_search_is_recorded_as_one(quantizer: str) -> None:
    problem = group("plain")
    found = only(problem, "mxint4", Options(quantizer=quantizer))
    assert (found.choice.quantizer, found.choice.rule) == (quantizer, "mse")


def test_weights_only_leaves_the_input_alone() -> None:
    (found,) = solve(group("outliers"), [("mxint8", "none")], Options())
    assert found.choice.act_format == found.choice.act_rule == "none"
    assert found.error < 1e-4


def test_only_scale_rules_that_the_target_has_are_tried() -> None:
    config = make_config({"format": "nvfp4", "hadamard": "auto"})
    (cpu,) = targets_named("cpu")
    assert "four_over_six" in options_of(config, cpu.activation_rules).act_rules
    assert options_of(config, {"absmax", "rceil"}).act_rules == ("absmax", "rceil")


@pytest.mark.parametrize("quantizer", [n for n, m in QUANTIZERS.items() if m.needs_hessian])
@pytest.mark.parametrize(
    ("fmt", "rule"), [("nvfp4", "sweep"), ("nvint4", "sweep"), ("mxfp4", "mse"), ("mxint4", "mse")]
)
def test_what_learns_searches_scales(quantizer: str, fmt: str, rule: str) -> None:
    config = make_config({"format": fmt, "quantizer": quantizer, "hadamard": "off"})
    found = only(group("plain"), fmt, options_of(config, ()))
    assert (found.choice.quantizer, found.choice.rule) == (quantizer, rule)


def quiet(draw: np.random.Generator) -> np.ndarray:
    """Blocks of numbers that lie just where a scale of four has its values and six has none."""
    values = draw.choice([4.0, 3.0, 2.0, 1.5, 1.0, 0.5], (JUDGED, K)) * draw.choice([-1, 1])
    values[:, ::16] = 4
    return values.astype(np.float32)


def level(draw: np.random.Generator) -> np.ndarray:
    """Those that a scale of six has all of: nothing is gained by four. Tensor scales are exact."""
    values = draw.choice([6.0, 4.0, 3.0, 2.0, 1.0, 0.5], (JUDGED, K)) * draw.choice([-1, 1])
    values[:, ::16] = 6
    return (448 * values).astype(np.float32)


@pytest.mark.parametrize(("rows", "rule"), [(quiet, "four_over_six"), (level, "absmax")])
def test_four_over_six_is_kept_where_it_helps(rows, rule: str) -> None:
    draw = np.random.default_rng(0)
    weight = np.sign(draw.standard_normal((N, K))).astype(np.float32)
    problem = GroupProblem((weight,), None, rows(draw))
    found = only(problem, "nvfp4", Options(act_rules=("absmax", "four_over_six")))
    assert found.choice.act_rule == rule
