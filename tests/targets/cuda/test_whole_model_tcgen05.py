"""The small language model by `tcgen05`, which is asked for, on a GPU that is not there."""

from pathlib import Path

import numpy as np
import pytest

import lbcompiler
from lbcompiler.artifact import open_artifact
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, with_emulated_kernels
from tests.targets.cuda.shared import once
from tests.targets.cuda.test_whole_model import MIN_QSNR_DB, MODEL, SAMPLE, qsnr_db

ISA = "sm_100a+tcgen05"

pytestmark = needs.nvcc


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "whole_model_tcgen05", make) / "t.lbc"


def make(folder: Path) -> None:
    """t.lbc, with emulated kernels."""
    path = folder / "t.lbc"
    lbcompiler.compile(MODEL, target=f"cuda:{ISA}", format="nvfp4", output=path, keep_source=True)
    with_emulated_kernels(path, ISA)


def test_every_linear_says_that_it_is_native(artifact: Path) -> None:
    manifest = open_artifact(artifact).manifest
    assert manifest.target.isa == ISA
    kernels = {layer.kernel for layer in manifest.layers if layer.realized == "nvfp4"}
    assert kernels == {"native_nvfp4_nvfp4_sm_100a_tcgen05"}


@pytest.mark.parametrize("tokens", [pytest.param(9, marks=pytest.mark.slow), 130])
def test_it_computes_what_the_processor_computes(artifact: Path, tokens: int) -> None:
    inputs = {"input_ids": np.load(SAMPLE)["input_ids"][:1, :tokens]}
    given, results = (artifact.parent / f"{name}{tokens}.npz" for name in ("inputs", "results"))
    np.savez(given, **inputs)
    done = run(
        "import numpy, lbcompiler\n"
        f"outputs = lbcompiler.load({str(artifact)!r}).run(dict(numpy.load({str(given)!r})))\n"
        f"numpy.savez({str(results)!r}, **outputs)\n",
        FAKE_CUDA_CAPABILITY="10.0",
    )
    assert done.returncode == 0, done.stderr
    program = lbcompiler.compile(MODEL, target="cpu", format="nvfp4").load()
    wanted = program.run(inputs)["logits"]
    assert qsnr_db(wanted, np.load(results)["logits"]) > MIN_QSNR_DB
