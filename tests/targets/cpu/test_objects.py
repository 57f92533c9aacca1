"""Object code of kernels, kept from one compilation to the next."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tvm
from tvm import relax

import lbcompiler
from lbcompiler import files
from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu import objects
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import AVX2, GENERIC, detect
from lbcompiler.targets.cpu.objects import CACHE
from tests.targets.cpu.relax_runner import Function, function, normal

SHAPE = (3, 40)
KERNELS = 3  # of `some_kernels`


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of functions as they are compiled."""
    names: list[str] = []
    once = objects._compiled

    def counted(function, target):  # type: ignore[no-untyped-def]
        names.append(str(function.attrs["global_symbol"]))
        return once(function, target)

    monkeypatch.setattr(objects, "_compiled", counted)
    return names


def some_kernels() -> Function:
    """The largest sum of a row's exponentials: a kernel for each word."""

    def emit(x: relax.Var) -> relax.Expr:
        return relax.op.max(relax.op.sum(relax.op.exp(x), axis=-1), axis=0)

    return function(emit, SHAPE, isa=detect())


def test_a_kernel_is_compiled_once(compiled: list[str]) -> None:
    x = normal(*SHAPE)
    expected = np.exp(x.astype(np.float64)).sum(axis=-1).max()
    for _ in range(2):
        np.testing.assert_allclose(some_kernels()(x), expected, rtol=1e-6)
    assert len(compiled) == len(set(compiled)) == len([*CACHE.folder.iterdir()]) == KERNELS


def small_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17]>
    g (float[n, 64] x) => (float[n, 32] y) { h = MatMul (x, w)  y = Softmax <axis = -1> (h) }""")
    weight = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def test_another_process_finds_what_this_one_compiled(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx")
    lbcompiler.compile(tmp_path / "m.onnx", format="nvfp4")
    held = set(CACHE.folder.iterdir())
    said = ["compile", str(tmp_path / "m.onnx"), "--format", "nvfp4", "-o", str(tmp_path / "m.lbc")]
    subprocess.run([sys.executable, "-m", "lbcompiler", *said], check=True, capture_output=True)
    assert set(CACHE.folder.iterdir()) == held
    assert held


def test_only_what_has_changed_is_compiled_again(compiled: list[str]) -> None:
    model = small_model()
    lbcompiler.compile(model, format="mxint8")
    first = len(compiled)
    lbcompiler.compile(model, format="mxint8")
    assert [name for name in compiled[first:] if not name.startswith("shape_func")] == []
    lbcompiler.compile(model, format="mxfp4", act_format="mxint8")
    assert {name.partition("_")[0] for name in compiled[first:]} - {"shape"} == {"gemm", "quantize"}


def test_another_target_or_compiler_is_another_entry(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = some_kernels().module
    for isa in (AVX2, GENERIC):
        build(module, isa.tvm_target())
    monkeypatch.setattr(objects, "_compiler", lambda: "of tomorrow")
    build(module, GENERIC.tvm_target())
    assert len(compiled) == 3 * KERNELS


@pytest.mark.parametrize("step", ["write", "load"])
def test_a_folder_that_nothing_can_be_loaded_from_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "write":
        monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "nowhere"))
    else:

        def refused(_path: str) -> None:
            raise RuntimeError("program.so: failed to map segment from shared object")

        monkeypatch.setattr(tvm.runtime, "load_module", refused)
    with pytest.raises(ConfigError, match=r"(nowhere|failed to map).*TMPDIR"):
        some_kernels().machine  # noqa: B018


def test_a_library_needs_no_kernels() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([2], "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    machine = build(builder.get(), detect().tvm_target()).load(tvm.cpu())
    given = np.ones(2, np.float32)
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(given)).numpy(), given)
