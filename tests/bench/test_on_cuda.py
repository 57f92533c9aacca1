"""Target cuda in `lbc bench`, on a GPU that is not there; cuBLAS is a double that multiplies as
the BLAS says, in columns.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbcompiler.cli import app
from lbcompiler.errors import ConfigError
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, toolkit
from tests.test_cli_flow import documented, has_fields_of, language_model

CUBLAS = """
import ml_dtypes
import numpy as np
from lbcompiler.bench import cublas
from tests.bench.cublas_double import Double
cublas._load = Double
"""
BENCH = """
import sys
from lbcompiler.bench import on_cuda
from lbcompiler.targets.cuda import bench, ceilings
on_cuda.PEAK = (8, 32, 16)
ceilings.COPY_BYTES, bench.VISIT_S = ceilings.PIECE, 0
from lbcompiler.cli import app
app(sys.argv[1:], standalone_mode=True)
"""


def bench(*arguments: str, before: str = "") -> str:
    code = f"import sys\nsys.argv[1:] = {list(arguments)!r}\n{before}{BENCH}"
    done = run(code, **toolkit(), FAKE_CUDA_CAPABILITY="8.0", FAKE_CUDA_L2="1000")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMON = ("bench", "gemm", "--target", "cuda", "--format", "mxint8", "--rounds", "1", "--quiet")


@needs.nvcc
def test_rows_are_those_of_the_cpu() -> None:
    said = bench(*COMMON, "3x64x48", "--json", before=CUBLAS)
    found = json.loads(said)
    (row,) = found["rows"]
    has_fields_of(documented("bench-gemm"), {"rows": [{**row, "is_graph": None}]})
    assert (row["shape"], row["isa"], row["cold"]) == ([3, 64, 48], "sm_80", True)
    assert row["is_graph"] is True
    assert row["memory"] == "copy"
    assert row["gops"] * row["ms"] == pytest.approx(2e-6 * 3 * 64 * 48)
    assert row["dram_share"] == pytest.approx(row["weight_gb_s"] / row["dram_gb_s"])
    assert row["ceiling_share"] == pytest.approx(row["gops"] / row["ceiling_gops"])
    peer = row["peers"]["cublas_bf16"]
    assert peer["ratio"] == pytest.approx(peer["ms"] / row["ms"])
    assert "torch_fp8" in row["missing"]


@needs.nvcc
def test_the_table_says_what_is_missing() -> None:
    said = bench(*COMMON, "20x64x48", "--act-format", "none", "--peers", "cublas")
    assert "mxint8 x none" in said
    assert "no bfloat16 peak that could be measured" in said
    assert "bf16 peak: not measured (there is no cuBLAS" in said
    assert "cublas_bf16: not measured (there is no cuBLAS: pip install nvidia-cublas" in said
    assert "copy within the GPU" in said
    assert "CUDA graphs" in said


@pytest.mark.slow
@needs.nvcc
def test_a_model_on_a_gpu_kernel_by_kernel(tmp_path: Path) -> None:
    language_model(tmp_path / "lm.onnx")
    setup = f"{CUBLAS}from lbcompiler.bench import profile\nprofile.RUNS = 1\n"
    compiled = ("compile", str(tmp_path / "lm.onnx"), "--target", "cuda", "--format", "mxint4")
    bench(*compiled, "-o", str(tmp_path / "lm.lbc"), "--no-measure", "--quiet")
    asked = ("bench", str(tmp_path / "lm.lbc"), "--profile", "--rounds", "1", "--quiet", "--json")
    found = json.loads(bench(*asked, "--input", "input_ids:1x5", before=setup))
    linears = [row for row in found["profile"] if row["gops"] is not None]
    has_fields_of(documented("bench-model"), {**found, "profile": linears})
    assert set(found["ceilings"]) == {"copy", "bf16"}
    assert sorted(row["shape"] for row in linears) == [[5, 64, 96], [5, 96, 48]]
    assert all(row["ceiling"] == "bf16" and row["ceiling_share"] > 0 for row in linears)


@needs.nvcc
def test_cublas_multiplies_rows_by_transposed_weights() -> None:
    done = run(
        CUBLAS + "from lbcompiler.targets.cuda.clock import Clock\n"
        "from lbcompiler.targets.cuda.machine import gpu_for\n"
        "from lbcompiler.targets.cuda.bench import uploaded\n"
        "gpu_for('', 'the test runs')\n"
        "rng = np.random.default_rng(0)\n"
        "x, w = (rng.integers(-4, 5, s).astype(np.float32) for s in ((3, 8), (5, 8)))\n"
        "bits = lambda a: uploaded(a.astype(ml_dtypes.bfloat16).view(np.uint16))\n"
        "y = uploaded(np.zeros((3, 5), np.uint16))\n"
        "destroyed = []\n"
        "Double.cublasDestroy_v2 = lambda *handle: destroyed.append(handle)\n"
        "cublas.Cublas(Clock()).multiply(bits(x), bits(w), y)\n"
        "assert (y.numpy().view(ml_dtypes.bfloat16).astype(np.float32) == x @ w.T).all()\n"
        "assert len(destroyed) == 1\n",
        **toolkit(),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "gemm", "--target", "cuda"), "lbc bench gemm times kernels of target cuda on a"),
        (("bench", "gemm", "--target", "cuda:sm_90a"), "run it on a machine that has one"),
        (("bench", "gemm", "--target", "cuda", "--peers", "mkl"), "choose of cublas, torch"),
        (("bench", "gemm", "--target", "cuda", "--threads", "2"), "--threads is for target cpu"),
        (("tune", "--target", "cuda", "--shape", "1x64x64"), "lbc tune measures kernels of target"),
        (("tune", "--target", "cuda", "--shape", "1x1x1", "--rpc", "a:1"), "--rpc is for target"),
        (("tune", "--target", "tpu", "--shape", "1x1x1"), "unknown target 'tpu'"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbcompiler.targets.cuda.driver.LIBRARY", "libnothing.so")
    result = CliRunner().invoke(app, arguments)
    said = result.output + str(result.exception)
    assert result.exit_code in (1, 2), said
    assert message in said


def test_without_torch_the_peer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lbcompiler.bench import peers_cuda

    monkeypatch.setattr(peers_cuda, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="torch is not installed"):
        peers_cuda.check_peers(["torch"])
