"""The smallest model, compiled for every architecture in the formats of the matrix."""

import pytest

from tests.bench.compile_matrix import ARCHS, FORMATS, MODELS, compile_all, table
from tests.targets.cuda import needs

ROW = {"model": "m", "format": "f", "seconds": 2.04, "kernels": 7, "spills": {}}


@needs.nvcc
@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_it_compiles_and_spills_nowhere(fmt: str) -> None:
    rows = compile_all(MODELS["tiny_lm"], fmt, list(ARCHS))
    assert [row["arch"] for row in rows] == list(ARCHS)
    assert [row["spills"] for row in rows] == [{}] * len(ARCHS)
    native = {"sm_120a"} if fmt != "mxint8" else set()
    assert {row["arch"] for row in rows if "native" in row["routes"]} == native
    assert all(row["kernels"] and row["kernel_bytes"] and row["registers"] <= 255 for row in rows)


def test_the_table_shows_seconds_kernels_and_what_is_wrong() -> None:
    rows = [
        {**ROW, "arch": "sm_80"},
        {**ROW, "arch": "sm_90a", "spills": {"gemm": 8}},
        {"model": "m", "format": "g", "arch": "sm_90a", "error": "no nvcc"},
    ]
    assert table(rows).splitlines()[2:] == [
        "| m | `f` | 2.0 s, 7 | 2.0 s, 7, 1 spill |",
        "| m | `g` |  | fails: no nvcc |",
    ]
