"""What no rule takes still runs, in parallel where that is legal, and is reported."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tvm import relax, tirx, topi

from lbcompiler.targets.cpu.schedule import FALLBACK, RULES, schedule_function
from tests.targets.cpu.relax_runner import B, H, L, function, normal

op = relax.op


def parallel_loops(kernel: Any) -> int:
    found: list[Any] = []
    tvm_ffi.structural_walk(kernel.body, (tirx.For, lambda loop: found.append(loop)))
    return sum(loop.kind == tirx.ForKind.PARALLEL for loop in found)


def test_a_reduction_no_rule_knows_runs_in_parallel() -> None:
    def any_of(x: Any) -> Any:
        return relax.BlockBuilder.current().call_te(lambda x: topi.any(x, axis=[-1]), x)

    built = function(any_of, (B, L, 37), dtypes=["bool"])
    assert built.rules == [FALLBACK]
    assert parallel_loops(built.scheduled[0]) == 1
    x = normal(3, 5, 37) > 2
    np.testing.assert_array_equal(built(x), x.any(-1))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_running_sums(axis: int, exclusive: bool) -> None:
    built = function(lambda x: op.cumsum(x, axis, exclusive=exclusive), (B, L, H))
    x = np.random.default_rng(0).integers(-9, 9, (3, 50, 7)).astype(np.float32)
    np.testing.assert_array_equal(built(x), x.cumsum(axis) - (x if exclusive else 0))


def test_sorts() -> None:
    x = normal(5, 37)
    np.testing.assert_array_equal(function(lambda x: op.sort(x, -1), (B, L))(x), np.sort(x))
    top = function(lambda x: relax.TupleGetItem(op.topk(x, 4, -1), 0), (B, L))
    np.testing.assert_array_equal(top(x), -np.sort(-x)[:, :4])
    order = function(lambda x: op.argsort(x, -1, dtype="int64"), (B, L))
    np.testing.assert_array_equal(order(x), np.argsort(x))


def test_scatter() -> None:
    x, updates, index = normal(5, 37), normal(5, 9), np.argsort(normal(5, 37, seed=1))[:, :9]
    built = function(
        lambda x, i, u: op.scatter_elements(x, i, u, 1),
        (B, L),
        (B, H),
        (B, H),
        dtypes=["float32", "int64", "float32"],
    )
    expected = x.copy()
    np.put_along_axis(expected, index, updates, 1)
    np.testing.assert_array_equal(built(x, index, updates), expected)


def test_a_rule_that_fails_costs_speed_and_not_the_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> Any:
        raise ValueError("broken")

    kernel = next(
        f
        for f in function(op.exp, (B, L)).kernels.functions.values()
        if isinstance(f, tirx.PrimFunc)
    )
    for name in RULES:
        monkeypatch.setitem(RULES, name, broken)
    assert schedule_function(kernel, 16)[0] == FALLBACK
    assert "the rule rows failed" in caplog.text


def test_a_function_with_its_own_schedule_is_left_alone() -> None:
    kernel = next(
        f
        for f in function(op.exp, (B, L)).kernels.functions.values()
        if isinstance(f, tirx.PrimFunc)
    ).with_attr("tirx.is_scheduled", True)
    rule, same = schedule_function(kernel, 16)
    assert rule == "own"
    assert same.same_as(kernel)
