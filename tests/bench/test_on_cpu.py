"""`lbc bench gemm` behind the command line: figures that belong together, peers, refusals."""

from typing import Any

import pytest

from lbcompiler.bench import on_cpu
from lbcompiler.bench import peers as others
from lbcompiler.bench.gemm import GemmRow
from lbcompiler.bench.targets import Settings, bench_gemm
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu import bench, ceilings
from lbcompiler.targets.cpu.isa import GENERIC

MXINT8, MXFP8 = FORMATS["mxint8"], FORMATS["mxfp8"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "STEPS", 1000)
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(on_cpu, "COLD_BYTES", 1 << 16)


def one(shape: tuple[int, int, int], **options: Any) -> GemmRow:
    (row,) = bench_gemm("cpu", [(MXINT8, MXINT8)], [shape], Settings(rounds=1, **options))
    return row


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 24), (17, 64, 96)])
def test_figures_belong_together(shape: tuple[int, int, int]) -> None:
    row = one(shape, threads=1)
    m, k, n = shape
    assert (row.shape, row.format, row.act_format, row.threads) == (shape, "mxint8", "mxint8", 1)
    assert row.quantize_ms > 0
    assert row.gops * row.ms == pytest.approx(2e-6 * m * k * n)
    if row.ceiling_gops is not None:
        assert row.ceiling_share == pytest.approx(row.gops / row.ceiling_gops)
    assert row.dram_share == pytest.approx(row.weight_gb_s / row.dram_gb_s)


def test_weights_are_cold_where_little_is_done_with_them() -> None:
    assert one((1, 64, 64)).cold
    assert not one((1, 64, 64), hot=True).cold
    assert not one((16, 64, 64)).cold


def test_a_weight_too_small_to_leave_the_caches_is_called_hot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "MOST_COPIES", 2)
    assert not one((1, 64, 64)).cold


def test_runs_take_turns_with_the_copies() -> None:
    assert bench.copies_of(100, 0) == 1
    assert bench.copies_of(100, 250) == 3
    assert bench.copies_of(100, 10**9) == bench.MOST_COPIES


def test_weights_only_and_another_instruction_set() -> None:
    (row,) = bench_gemm("cpu", [(MXFP8, None)], [(2, 32, 16)], Settings("generic", rounds=1))
    assert (row.act_format, row.isa, row.quantize_ms) == ("none", "generic", 0.0)
    assert (row.ceiling_gops, row.ceiling_share) == (None, None)


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_in_three_variants(bits: int) -> None:
    made, missing = others.peers(["onnxruntime"], bits, (2, 64, 32), 1, 1 << 14)
    assert not missing
    names = ["onnxruntime_float", "onnxruntime_dynamic_int8", f"onnxruntime_nbits{bits}"]
    assert list(made) == names
    for peer in made.values():
        assert len(peer.run()) == peer.calls > 1


def test_the_row_has_its_peers() -> None:
    row = one((2, 32, 16), peer_names=["onnxruntime"])
    assert len(row.peers) == 3
    for peer in row.peers.values():
        assert peer.ratio == pytest.approx(peer.ms / row.ms)


def test_openvino_where_it_is_installed() -> None:
    pytest.importorskip("openvino")
    for bits in (4, 8):
        made, _ = others.peers(["openvino"], bits, (2, 64, 32), 1, 1 << 13)
        (peer,) = made.values()
        assert len(peer.run()) == peer.calls > 1


def test_a_peer_that_fails_is_told_of_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> dict[str, others.Peer]:
        raise RuntimeError("no such instruction\nat 0x0")

    monkeypatch.setitem(others.PEERS, "openvino", refuses)
    monkeypatch.setattr(others, "find_spec", lambda _: True)
    row = one((2, 32, 16), peer_names=["openvino", "onnxruntime"])
    assert row.missing == {"openvino": "RuntimeError: no such instruction"}
    assert len(row.peers) == 3


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        one((1, 32, 16), peer_names=["openvino"])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="unknown peer 'mkl'"):
        one((1, 32, 16), peer_names=["mkl"])


def test_a_shape_that_a_peer_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "find_spec", lambda _name: "found")
    with pytest.raises(ConfigError, match="groups of 32, not 33"):
        one((1, 33, 16), peer_names=["openvino"])


def test_another_machines_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cpu, "detect", lambda: GENERIC)
    with pytest.raises(ConfigError, match="cannot run avx512_vnni: its best is generic"):
        bench_gemm("cpu", [(MXINT8, None)], [(1, 32, 16)], Settings("avx512_vnni"))
