"""The small language model, compiled for three architectures and run on a GPU that is not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import lbcompiler
from lbcompiler import cli_kernels
from lbcompiler.artifact import Artifact, open_artifact
from lbcompiler.cli import app
from lbcompiler.errors import ArtifactError, ConfigError, DeviceError
from lbcompiler.targets.cuda import resources
from lbcompiler.targets.cuda.device_code import DeviceCode
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, with_emulated_kernels
from tests.targets.cuda.shared import once

MODEL = Path("models/tiny_lm.onnx")
SAMPLE = Path("models/tiny_lm_sample.npz")
TOKENS = 9  # an odd number of rows, more than the kernels for a few take at once
MANY_TOKENS = 130  # no whole tile of tokens
ARCHS = {"sm_80": "8.0", "sm_90a": "9.0", "sm_120a": "12.0"}  # and a device of each

INSTRUCTIONS = {"sm_80": "HMMA.16816.F32.BF16", "sm_90a": "HGMMA", "sm_120a": "OMMA.SF"}

pytestmark = needs.nvcc

# Both compute the same exact products and sum them in float32: of K <= 416 terms, with an error of
# about sqrt(K) 2^-24 of the sum, which twenty layers can add up to 2.4e-5. A code that comes out
# differently would cost much more: on these inputs none does.
MIN_QSNR_DB = 90.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "whole_model", make)


def make(folder: Path) -> None:
    """t.lbc, the same with emulated kernels, inputs, and what the processor makes of them."""
    artifact = lbcompiler.compile(
        MODEL,
        target=f"cuda:{','.join(ARCHS)}",
        format="nvfp4",
        output=folder / "t.lbc",
        keep_source=True,
    )
    copy = artifact.save(folder / "emulated.lbc").path
    for isa in ARCHS:
        with_emulated_kernels(copy, isa)
    np.savez(folder / "inputs.npz", **inputs())
    program = lbcompiler.compile(MODEL, target="cpu", format="nvfp4").load()
    np.savez(folder / "expected.npz", **program.run(inputs()))


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return open_artifact(folder / "t.lbc")


@pytest.fixture(scope="module")
def emulated(folder: Path) -> Path:
    return folder / "emulated.lbc"


@pytest.fixture(scope="module")
def expected(folder: Path) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = np.load(folder / "expected.npz")["logits"]
    return logits


def qsnr_db(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    error = np.square(reference.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / error))


def inputs() -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.load(SAMPLE)["input_ids"][:1, :TOKENS]}


def test_what_is_in_it(artifact: Artifact) -> None:
    manifest = open_artifact(artifact.path).manifest
    assert manifest.target.name == "cuda"
    assert manifest.isas == list(ARCHS)
    assert {"model.so", "model.sm_90a.so", "kernels.sm_120a.safetensors"} <= set(manifest.files)


def test_every_kernel_is_told_of(artifact: Artifact) -> None:
    for isa in ARCHS:
        told = [kernel for kernel in artifact.manifest.kernels if kernel.arch == isa]
        held = DeviceCode.read(artifact.path / f"kernels.{isa}.safetensors")
        assert [kernel.name for kernel in told] == [entry.name for entry in held.entries]
        assert all(kernel.registers > 0 and 0 < kernel.occupancy <= 1 for kernel in told)
        assert not [kernel for kernel in told if kernel.spill_bytes]


def test_every_architecture_has_its_own_kernels_and_one_file_of_weights(artifact: Artifact) -> None:
    manifest = artifact.manifest
    for isa in ARCHS:
        program = manifest.program(isa)
        assert program.target.isa == isa
        linears = [layer for layer in program.layers if layer.realized == "nvfp4"]
        assert len(linears) == manifest.totals.quantized
        assert all(layer.kernel.endswith(isa) and layer.weights for layer in linears)
        assert {name for layer in linears for name in layer.weights} <= set(program.parameters)


def test_the_text_of_every_kernel_is_kept(artifact: Artifact) -> None:
    for kernel in artifact.manifest.kernels:
        text = (artifact.path / f"source.{kernel.arch}" / f"{kernel.name}.cu").read_text()
        assert f"{kernel.name}(" in text


@pytest.mark.parametrize("isa", ARCHS)
def test_it_computes_what_the_processor_computes(
    isa: str, emulated: Path, expected: NDArray[np.float32]
) -> None:
    results = emulated.parent / f"{isa}.npz"
    done = run(
        "import numpy, lbcompiler\n"
        f"program = lbcompiler.load({str(emulated)!r})\n"
        f"assert program.manifest.target.isa == {isa!r}\n"
        f"outputs = program.run(dict(numpy.load({str(emulated.parent / 'inputs.npz')!r})))\n"
        f"numpy.savez({str(results)!r}, **outputs)\n",
        FAKE_CUDA_CAPABILITY=ARCHS[isa],
    )
    assert done.returncode == 0, done.stderr
    assert qsnr_db(expected, np.load(results)["logits"]) > MIN_QSNR_DB


@pytest.mark.slow
def test_many_rows_go_through_tensor_maps(emulated: Path) -> None:
    """More rows than sm_90a multiplies by `mma.sync`: TMA's maps are made by TVM's runtime."""
    tokens = np.load(SAMPLE)["input_ids"][:1, :MANY_TOKENS]
    np.savez(emulated.parent / "many.npz", input_ids=tokens)
    results = emulated.parent / "many_results.npz"
    done = run(
        "import numpy, lbcompiler\n"
        f"program = lbcompiler.load({str(emulated)!r})\n"
        f"outputs = program.run(dict(numpy.load({str(emulated.parent / 'many.npz')!r})))\n"
        f"numpy.savez({str(results)!r}, **outputs)\n",
        FAKE_CUDA_CAPABILITY="9.0",
    )
    assert done.returncode == 0, done.stderr
    program = lbcompiler.compile(MODEL, target="cpu", format="nvfp4").load()
    wanted = program.run({"input_ids": tokens})["logits"]
    assert qsnr_db(wanted, np.load(results)["logits"]) > MIN_QSNR_DB


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FAKE_CUDA_CAPABILITY": "7.5"}, "sm_80, sm_90a, sm_120a, and Emulated GPU has compute"),
        ({"FAKE_CUDA_CAPABILITY": "10.0"}, "compile it with --target cuda:sm_100a"),
        ({"FAKE_CUDA_RELEASE": "12040"}, "made for CUDA 12.4, and TVM's runtime needs .* 13.0"),
        ({"FAKE_CUDA_INIT": "100"}, "the NVIDIA driver does not start: it sees no GPU"),
        ({"FAKE_CUDA_INIT": "999"}, "cuInit gives error 999"),
        ({"FAKE_CUDA_COUNT": "0"}, "the NVIDIA driver sees no GPU"),
        ({"FAKE_CUDA_MEMORY": "100000"}, "the GPU has not enough free memory"),
        ({"FAKE_CUDA_LAUNCH": "719"}, "the GPU failed .*CUDA_ERROR_719"),
    ],
)
def test_a_machine_that_cannot_run_it(
    environment: dict[str, str], said: str, emulated: Path
) -> None:
    done = run(
        "import re, numpy, lbcompiler\n"
        "try:\n"
        f"    program = lbcompiler.load({str(emulated)!r})\n"
        f"    program.run(dict(numpy.load({str(emulated.parent / 'inputs.npz')!r})))\n"
        "except lbcompiler.LbcError as error:\n"
        "    assert type(error).__name__ == 'DeviceError'\n"
        f"    assert re.search({said!r}, str(error)), error\n"
        "else:\n"
        "    raise SystemExit('it ran')\n",
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_machine_without_a_driver(artifact: Artifact) -> None:
    done = run(
        f"import lbcompiler\nlbcompiler.load({str(artifact.path)!r})\n", LD_LIBRARY_PATH="/nowhere"
    )
    assert "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)" in done.stderr
    assert DeviceError.__name__ in done.stderr


def test_kernels_that_are_damaged(artifact: Artifact, tmp_path: Path) -> None:
    copy = artifact.save(tmp_path / "copy.lbc").path
    path = copy / "kernels.sm_80.safetensors"
    held = path.read_bytes()
    path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="does not have the hash of its manifest"):
        open_artifact(copy)
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        DeviceCode.read(path)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["kernels.sm_80.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="does not list the files"):
        open_artifact(copy)


def test_the_gpu_of_this_machine_is_asked_for() -> None:
    done = run(
        "import lbcompiler; lbcompiler.compile('models/tiny_lm.onnx', target='cuda')",
        FAKE_CUDA_CAPABILITY="7.0",
    )
    assert "Emulated GPU has compute capability 7.0, which there are no kernels for" in done.stderr
    done = run(
        "import lbcompiler; lbcompiler.compile('models/tiny_lm.onnx', target='cuda')",
        LD_LIBRARY_PATH="/nowhere",
    )
    assert ConfigError.__name__ in done.stderr
    assert "say for which GPU to compile: --target cuda:ARCH, of sm_80" in done.stderr


def test_inspect_lists_what_the_kernels_take(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_kernels, "instructions", lambda artifact: {})  # the next test's
    result = CliRunner().invoke(app, ["inspect", str(artifact.path), "--kernels"])
    assert result.exit_code == 0, result.output
    for kernel in artifact.manifest.kernels:
        assert kernel.name in result.stdout
    assert f"kernels for {', '.join(ARCHS)}" in result.stdout


@needs.cuobjdump
def test_inspect_tells_the_instructions(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some GEMMs alone: each kernel takes nvdisasm a third of a second and more."""
    read, some = resources.instructions_of, b"_160_160"
    monkeypatch.setattr(
        resources, "instructions_of", lambda cubin: read(cubin) if some in cubin else {}
    )
    result = CliRunner().invoke(app, ["inspect", str(artifact.path), "--kernels", "--json"])
    kernels = json.loads(result.stdout)["kernels"]
    assert len(kernels) == len(artifact.manifest.kernels)
    gemms = [held for held in kernels if held["instructions"] is not None]
    assert all(held["name"].startswith("gemm_") for held in gemms)
    for isa, instruction in INSTRUCTIONS.items():
        found = {name for held in gemms if held["arch"] == isa for name in held["instructions"]}
        assert any(name.startswith(instruction) for name in found), (isa, found)
        assert not any(name.startswith(("LDL", "STL")) for name in found), (isa, found)
