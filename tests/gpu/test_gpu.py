"""`python -m tests.gpu` on a GPU that is not there: what it finds, and what does not stop it."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import builder, builders, run, worker
from tests.gpu.__main__ import OPTIONS, _options, _parser, main
from tests.gpu.built import Loaded
from tests.gpu.check import Record, WrongError
from tests.gpu.gemm import Gemm
from tests.gpu.kernels import every_bit, within
from tests.gpu.plan import SMALL, Options, archs_of, kernel_checks, plan
from tests.gpu.quantize import Quantize, expected_operands
from tests.gpu.scheduled import Append, FloatProduct
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import ROOT, machine, toolkit
from tests.targets.cuda.fake_gpu import run as run_on_gpu

CUBLAS = "from tests.bench.cublas_double import Double\nfrom lbcompiler.bench import cublas\n"
CUBLAS += "cublas._load = Double\n"
FEW = ("--only", "quantize mxint8_bfloat16 sm_80 K", "--only", "decode mxint4")
PROLOGUES = ("--only", "add_layer_norm_hadamard", "--only", "silu_multiply nvfp4")
GEMM = ("--only", "gemm exact_mxint8_mxint8_sm_80")
SCHEDULED = ("--only", "linear float32", "--only", "append", "--only", "attention sm_80, heads of")


def on_emulated_gpu(code: str) -> subprocess.CompletedProcess[str]:
    return run_on_gpu(code, **toolkit(), FAKE_CUDA_CAPABILITY="8.0", FAKE_CUDA_L2="1000")


def check_gpu(
    *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """(the command, what it wrote)."""
    path = Path(environment.pop("FOLDER")) / "found.json"
    held = {**os.environ, **machine(), **toolkit(), **environment}
    small = () if "--built" in arguments else ("--small",)
    command = [sys.executable, "-m", "tests.gpu", *small, "--json", str(path), *arguments]
    done = subprocess.run(command, env=held, cwd=ROOT, capture_output=True, text=True, check=False)
    return done, json.loads(path.read_text())


@needs.nvcc
def test_every_kernel_is_right_where_there_is_no_compiler(tmp_path: Path) -> None:
    only, built = (*FEW, *GEMM, *PROLOGUES, *SCHEDULED), str(tmp_path / "built")
    build = ("--build", built, "--capability", "8.0", "--small", *only)
    command, here = [sys.executable, "-m", "tests.gpu", *build], {**os.environ, **toolkit()}
    made = subprocess.run(
        command, env=here, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True
    )
    count = made.stderr.split()[-3]
    assert made.stderr.strip().endswith(f"{count} of {count} are built")
    bare = {"PATH": "/nowhere", "CUDACXX": "/nowhere"}
    done, found = check_gpu("--built", built, FOLDER=str(tmp_path), **bare)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record["name"]: record for record in found["records"]}
    assert {record["status"] for record in records.values()} == {"passed"}, records
    assert found["environment"]["gpu"] == "Emulated GPU"
    gemm = "gemm exact_mxint8_mxint8_sm_80 N=72 K=200, few rows"
    assert 0 < records[gemm]["figures"]["share_of_bound"] < 0.1
    assert records[f"emulator: {gemm}"]["figures"]["equal_bits"] == 1
    assert records["quantize mxint8_bfloat16 sm_80 K=1152"]["figures"]["agreement"] == "every bit"
    behind = [name for name in records if name.startswith("quantize behind")]
    assert len(behind) == 3
    assert all(0 < records[name]["figures"]["share_of_bound"] < 1 for name in behind)
    scheduled = [f"linear float32_sm_80 N={SMALL[1]} K={SMALL[2]}", "append 67 rows to 130 sm_80"]
    assert {*scheduled, "attention sm_80, heads of 160 numbers"} <= set(records)
    assert done.stdout.strip().endswith("passed")


@needs.nvcc
@pytest.mark.parametrize(
    ("launch", "status", "said"), [("719", "failed", "719"), ("-1", "crashed", "ended with -6")]
)
def test_a_kernel_that_fails_does_not_stop_the_others(
    launch: str, status: str, said: str, tmp_path: Path
) -> None:
    done, found = check_gpu(*FEW, FOLDER=str(tmp_path), FAKE_CUDA_LAUNCH=launch)
    assert done.returncode == 1, done.stdout + done.stderr
    own = [r for r in found["records"] if not r["name"].startswith("emulator")]
    assert len(own) == 2
    assert {record["status"] for record in own} == {status}
    assert all(said in record["reason"] for record in own), own


def test_what_is_run_is_what_was_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, all_of_it = (
        _parser().parse_args(["--built", str(tmp_path), *only])
        for only in (("--only", "decode"), ())
    )
    assert _options(asked, ("sm_80",)) is None
    assert "not what --build leaves" in capsys.readouterr().out
    held = Options(("sm_80",), {"lm": "lm.onnx"}, True)
    (tmp_path / OPTIONS).write_text(held.to_json())
    assert _options(asked, ("sm_90a", "sm_90")) is None
    assert "is for sm_80, which this GPU does not run" in capsys.readouterr().out
    assert _options(asked, ("sm_80",)) == replace(held, only=("decode",))
    few = replace(held, only=("append",))
    (tmp_path / OPTIONS).write_text(few.to_json())
    assert _options(all_of_it, ("sm_80",)) == few
    records = run.run_all(_options(asked, ("sm_80",)), 60, lambda _: None, tmp_path)
    assert {record.status for record in records} == {"failed"}
    assert {record.reason for record in records} == {f"not built: it is not in {tmp_path}"}
    assert [path.name for path in tmp_path.iterdir()] == [OPTIONS]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--built", "here", "--small"),
        ("--built", "here", "--build", "there"),
        ("--built", "here", "--capability", "9.0"),
        ("--built", "here", "--model", "lm=lm.onnx"),
        ("--capability", "9.0"),
        ("--build", "there", "--json", "found.json"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_what_cannot_be_begun_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["--build", str(tmp_path / "built"), "--capability", "8.0"]
    assert main([*build, "--only", "decod mxint4"]) == 2
    assert "no check whose name holds decod mxint4" in capsys.readouterr().out
    monkeypatch.setenv("CUDACXX", str(fake_nvcc_that_fails(tmp_path, "10.2.1")))
    assert main(build) == 2
    assert "nothing can be built: " in (said := capsys.readouterr().out)
    assert "cannot compile for sm_80" in said
    assert main(["--build", str(tmp_path), "--capability", "8.0"]) == 2
    assert "there is already a" in capsys.readouterr().out
    assert not (tmp_path / "built").exists()


@needs.nvcc
def test_builders_end_with_the_command_that_began_them(tmp_path: Path) -> None:
    build = ["--build", str(tmp_path / "built"), "--capability", "8.0", "--only", "decode"]
    here = {**os.environ, **toolkit(), "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "tests.gpu", *build], env=here, cwd=ROOT)
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    begun: list[str] = []
    while not begun and process.poll() is None:
        time.sleep(0.05)
        is_building = any((tmp_path / "built").glob("*/"))
        begun = found.read_text().split() if is_building else []
    process.terminate()
    assert process.wait() == 1
    assert begun
    assert not any(Path("/proc", child).exists() for child in begun)


@needs.nvcc
def test_rows_of_speed_are_shares_of_what_was_measured_beside(tmp_path: Path) -> None:
    """What one process builds another runs, which could build nothing."""
    common = (
        CUBLAS + "from lbcompiler.ir.rotation import Rotation\n"
        "from lbcompiler.targets.cuda import bench, ceilings\n"
        "from lbcompiler.targets.cuda.machine import gpu_for\n"
        "from pathlib import Path\n"
        "from tests.gpu.speed import GemmSpeed, QuantizeSpeed\n"
        "ceilings.COPY_BYTES, bench.VISIT_S = ceilings.PIECE, 0\n"
        "checks = (GemmSpeed('mxint8', 'mxint8', 'sm_80', (3, 64, 48)),\n"
        "          GemmSpeed('mxint8', None, 'sm_80', (20, 64, 48)),\n"
        "          QuantizeSpeed('mxint8', Rotation(32), 'sm_80', (5, 64)))\n"
        f"folders = [Path({str(tmp_path)!r}, str(i)) for i in range(len(checks))]\n"
    )
    made = on_emulated_gpu(
        common + "for check, folder in zip(checks, folders):\n"
        "    folder.mkdir()\n"
        "    check.build(folder)\n"
    )
    assert made.returncode == 0, made.stderr
    done = on_emulated_gpu(
        common + "from tests.gpu import built\n"
        "built.build = None\n"
        "gpu_for('', 'the test runs')\n"
        "few, many, rotated = (c.run(folder) for c, folder in zip(checks, folders))\n"
        "assert few['whole_numbers'] == many['whole_numbers'] == 'every bit', (few, many)\n"
        "assert few['share'] * few['copy_gb_s'] > few['weight_gb_s'] * 0.999, few\n"
        "assert few['reached'] == (few['share_with_quantization'] >= 0.8), few\n"
        "assert few['of'] == 'copy', few\n"
        "assert abs(many['share'] * many['gemm_ms'] / many['cublas_bf16_ms'] - 1) < 1e-6, many\n"
        "assert many['of'] == 'cublas_bf16' and 'not measured' in many['torch_fp8'], many\n"
        "assert rotated['gb_s'] * rotated['ms'] * 1e6 > 5 * 64 * 4, rotated\n"
    )
    assert done.returncode == 0, done.stderr


@needs.nvcc
def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    done, found = check_gpu(*FEW, "--seconds", "0", FOLDER=str(tmp_path))
    assert done.returncode == 2
    assert {(r["status"], r["reason"]) for r in found["records"]} == {
        ("skipped", "the time was over")
    }
    assert done.stdout.strip().endswith(f"{len(found['records'])} not reached")


def test_what_hangs_twice_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(("sm_90a",), only=("gemm exact_nvfp4_nvfp4_sm_90a", "decode nvfp4"))
    ran = []

    def hangs_or_passes(_folder, _options, _builders, left, _end, keep):
        check = plan(options)[left[0]]
        ran.append(check.name)
        is_wide = check.name.endswith("wide rows")
        keep(left[0], Record(check.name, "crashed" if is_wide else "passed"))
        return check if is_wide else None

    monkeypatch.setattr(run, "_run_some", hangs_or_passes)
    monkeypatch.setattr(run, "builders_of", lambda *_: nullcontext((Path(), [])))
    records = run.run_all(options, 60, lambda _: None)
    names = [check.name for check in plan(options)]
    assert [record.name for record in records] == names
    wide = [record for record in records if record.name.endswith("wide rows")]
    assert [record.status for record in wide[:2]] == ["crashed"] * 2
    assert {record.status for record in wide[2:]} == {"skipped"}
    assert all("2 other checks of Gemm, exact, wide rows" in r.reason for r in wide[2:])
    assert len(wide) > 3
    assert {r.status for r in records if r not in wide} == {"passed"}
    assert len(ran) == len(records) - len(wide) + 2


def test_a_gpu_that_never_answers_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WELL_S", 0.05)
    monkeypatch.setattr(worker, "_answers", lambda: time.sleep(1) or True)
    assert not worker.is_well()
    monkeypatch.setattr(worker, "_answers", lambda: True)
    assert worker.is_well()


def test_calls_that_write_other_bits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Loaded.__new__(Loaded)
    kernels.calls, turn = 3, count()
    monkeypatch.setattr(kernels, "_once", lambda *_: [np.float32([1, next(turn) == 2])])
    with pytest.raises(WrongError, match="result 0 of gemm has other bits in call 3"):
        kernels("gemm", [], [])
    assert kernels("gemm", [], [])[0][0] == 1


@needs.nvcc
def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    held = {"FOLDER": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    held["CUDACXX"] = str(fake_nvcc_that_fails(tmp_path))
    done, found = check_gpu("--only", "decode mxint6", **held)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {record["status"] for record in found["records"]} == {"failed"}
    assert all("not built: CudaCompileError" in r["reason"] for r in found["records"])


@needs.nvcc
def test_where_nothing_can_be_built_the_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDACXX", str(fake_nvcc_that_fails(tmp_path)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = ["--build", str(tmp_path / "built"), "--capability", "8.0"]
    assert main([*build, "--only", "append 67 rows"]) == 2
    told = capfd.readouterr()
    assert "not built: append 67 rows to 130 sm_80: CudaCompileError" in told.out
    assert told.err.strip().endswith("1 of 1 are built")


def fake_nvcc_that_fails(folder: Path, version: str = "13.0.1") -> Path:
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo V{version} || exit 1\n')
    path.chmod(0o755)
    return path


def test_checks_whose_builder_died_are_not_waited_for(tmp_path: Path) -> None:
    process = subprocess.Popen(["false"])
    process.wait()
    checks = plan(Options(("sm_80",), only=("decode mxint4", "decode mxint8")))
    first, *others = {builder.folder_of(tmp_path, check) for check in checks}
    first.mkdir()
    (first / builder.DONE).touch()
    builders.bury([process], tmp_path, checks)
    assert not (first / builder.FAILED).exists()
    assert others
    assert all("died" in (folder / builder.FAILED).read_text() for folder in others)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LD_LIBRARY_PATH": "/nowhere"}, "there is no NVIDIA driver"),
        ({"FAKE_CUDA_INIT": "100"}, "it sees no GPU"),
    ],
)
@needs.nvcc
def test_without_a_gpu_it_says_so(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    done, found = check_gpu(FOLDER=str(tmp_path), **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert any(said in text for text in found["missing"])


def test_the_plan_begins_with_what_matters_and_leaves_no_kernel_out() -> None:
    options = Options(archs_of((9, 0)))
    assert options.archs == ("sm_90a", "sm_90")
    assert Options.of(options.to_json()) == options
    names = [check.name for check in plan(options)]
    assert len(names) == len(set(names))
    first = [next(i for i, name in enumerate(names) if part in name) for part in (
        "gemm exact_nvfp4_nvfp4_sm_90a", "model tiny_lm", "speed gemm", "emulator: ", "sm_90 ",
    )]  # fmt: skip
    assert first == sorted(first)
    for arch in options.archs:
        kernels = [name for name in names if f"_{arch} " in name and name.startswith("gemm ")]
        libraries = {name.partition(",")[0] for name in kernels if "=3" not in name}
        assert len(libraries) == 23  # ten formats with and without activations, mixed pairs, gelu
        programs = {name.partition(", ")[2] for name in kernels}
        assert programs == {"few rows", "many rows"} | (
            {"wide rows"} if arch == "sm_90a" else set()
        )
    assert "gemm exact_nvfp4_nvfp4_sm_90a N=1000 K=2072 blocks=3 group=2, wide rows" in names
    emulated = {name.removeprefix("emulator: ") for name in names if name.startswith("emulator")}
    assert emulated <= set(kernel_checks())


def test_a_wrong_sum_is_noticed() -> None:
    check = Gemm("nvfp4", "nvfp4", "sm_80", (2,), *SMALL[1:])
    x, (values, _, bias) = check._values(2), check._weights("normal")
    right = (x @ values.T + bias).astype(np.float32)
    outputs = {"normal 2": right, "whole 2": check._exact(2)[0].astype(np.float32)}
    assert check.judge(outputs)["share_of_bound"] < 0.1
    for name in outputs:
        wrong = {**outputs, name: outputs[name].copy()}
        wrong[name][1, 5] += 2.0**-4 * np.abs(wrong[name]).max()
        with pytest.raises(WrongError, match="1 of 144 are off, the first at"):
            check.judge(wrong)
    missing = {**outputs, "normal 2": np.full_like(right, np.nan)}
    with pytest.raises(WrongError, match=r"M=2, normal .* 144 of 144 .*; 1 of 2 are right"):
        check.judge(missing)


def test_a_wrong_row_or_number_is_noticed() -> None:
    append = Append("sm_80", 5, 2)
    right = {"state": append._state(), "rows": append._rows()}
    right["state"][5:] = right["rows"].transpose(2, 0, 1, 3)
    assert append.judge(right)["agreement"] == "every bit"
    right["state"][[5, 6]] = right["state"][[6, 5]]
    with pytest.raises(WrongError, match="state: 480 of 1680 differ"):
        append.judge(right)
    linear = FloatProduct("sm_80", *SMALL)
    w, bias = linear._weights()
    outputs = {str(m): linear._x(m) @ w.T + bias for m in linear.rows}
    assert linear.judge(outputs)["share_of_bound"] < 1
    outputs["13"][12, 71] -= bias[71]
    with pytest.raises(WrongError, match="M=13: 1 of 936 are off"):
        linear.judge(outputs)


@pytest.mark.parametrize("arch", ["sm_120a", "sm_100a+tcgen05"])
def test_a_wrong_code_is_noticed(arch: str) -> None:
    check = Quantize("nvfp4", arch, None, 10, 1152)
    wanted = expected_operands(check.kernel, check._x())
    outputs = {str(i): array.copy() for i, array in enumerate(wanted)}
    assert check.judge(outputs)["agreement"] == "every bit"
    outputs["0"][3, 7] ^= 1
    with pytest.raises(WrongError, match=r"0: 1 of \d+ differ, the first at \(3, 7\)"):
        check.judge(outputs)


def test_nan_is_nan_and_is_within_no_bound() -> None:
    nan = np.array([np.nan, 1], np.float32)
    assert every_bit({"y": nan}, {"y": -nan * np.array([1, -1], np.float32)})["numbers"] == 2
    with pytest.raises(WrongError, match="1 of 2 are off"):
        within(np.abs(nan - 1), np.ones(2), "y")
