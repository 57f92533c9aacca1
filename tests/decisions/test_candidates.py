"""The gate: on inputs made so that a rotation hurts it goes, where it helps it stays."""

import numpy as np
import pytest

from lbcompiler.decisions.candidates import (
    GATE,
    GroupProblem,
    Options,
    relative_error,
    solve,
)
from lbcompiler.formats import format_named
from lbcompiler.ir.rotation import Rotation
from lbcompiler.quantizers import QUANTIZERS

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
    rules = ("four_over_six", "mse")
    options = Options(quantizer=quantizer, rotations=ROTATIONS, rules=rules)
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
