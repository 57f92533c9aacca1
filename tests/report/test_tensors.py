"""QSNR, crest factor and kurtosis of a tensor against their definitions, written out."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.ir.rotation import Rotation
from lbcompiler.report.tensors import figures, spread

X = np.random.default_rng(0).standard_normal((48, 128)).astype(np.float32)
DB = 1e-6  # dB: sums are float64 on both sides


def qsnr(x: np.ndarray, rounded: np.ndarray) -> float:
    noise = np.square(x.astype(np.float64) - rounded).sum()
    return float(10 * np.log10(np.square(x.astype(np.float64)).sum() / noise))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("per_row", [False, True])
def test_qsnr_of_every_format(name: str, per_row: bool) -> None:
    fmt, found = FORMATS[name], figures(X, None, 3, per_row)
    expected = qsnr(X, fmt.rounded(X, per_row=per_row))
    assert found.qsnr_db[name] == pytest.approx(expected, abs=DB)
    rotated = Rotation(fmt.block, 3).apply(X)
    expected = qsnr(rotated, fmt.rounded(rotated, per_row=per_row))
    assert found.qsnr_hadamard_db[name] == pytest.approx(expected, abs=DB)


def test_a_size_that_was_asked_for_is_that_of_every_rotation() -> None:
    found = figures(X, 64, None, True)
    rotated = Rotation(64, None).apply(X)
    expected = qsnr(rotated, FORMATS["nvfp4"].rounded(rotated, per_row=True))
    assert found.qsnr_hadamard_db["nvfp4"] == pytest.approx(expected, abs=DB)


def test_no_rotation_of_what_is_no_whole_blocks() -> None:
    found = figures(X[:, :80], None, None, False)
    assert found.qsnr_hadamard_db["nvfp4"] is not None  # blocks of 16
    assert found.qsnr_hadamard_db["mxfp4"] is None  # blocks of 32


def test_zeros_have_no_qsnr() -> None:
    found = figures(np.zeros((4, 64), np.float32), None, None, False)
    assert set(found.qsnr_db.values()) == {None}
    assert (found.crest_16, found.crest_32) == (None, None)


def test_crest_and_kurtosis() -> None:
    found = figures(X, None, None, False)
    for block, crest in ((16, found.crest_16), (32, found.crest_32)):
        blocks = X.reshape(-1, block).astype(np.float64)
        expected = np.abs(blocks).max(axis=1) / np.sqrt(np.square(blocks).mean(axis=1))
        assert crest == pytest.approx(expected.mean(), rel=1e-6)  # float32 against float64
    power = np.square(X.astype(np.float64)).mean(axis=1)
    expected = (X.astype(np.float64) ** 4).mean(axis=1) / power**2
    assert found.kurtosis == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize(("rows", "count"), [(10, 3), (9, 3), (5, 8), (1, 1), (1000, 7)])
def test_rows_are_spread_evenly(rows: int, count: int) -> None:
    x = np.arange(rows)[:, None]
    found = spread(x, count)[:, 0]
    assert 0 < len(found) <= count
    assert found[0] == 0
    assert len(set(np.diff(found))) <= 1
    assert rows - found[-1] <= -(-rows // count)  # the last rows are not left out
