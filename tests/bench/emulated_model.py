"""A whole CUDA artifact on a GPU that is not there, beside the processor's artifact, in dB.

    python -m tests.bench.emulated_model models/built/minilm.onnx --tokens 16

The artifact's host code, memory plan and launches are its own; its kernels are emulated
(`tests.targets.cuda.fake_gpu`). Every number an emulated thread computes takes the processor tens
of nanoseconds: a transformer of 20 million weights and 16 tokens takes minutes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import lbcompiler
from lbcompiler.speed import synthetic_inputs
from lbcompiler.targets.cuda.arch import arch_named
from tests.bench.accuracy import listed
from tests.bench.fake_quantized import Array, qsnr
from tests.targets.cuda.fake_gpu import run, with_emulated_kernels

IDS = "input_ids"
VOCABULARY = 256  # every model has at least as many tokens


def compared(model: Path, fmt: str, act: str, arch: str, tokens: int) -> dict[str, Any]:
    """dB of each output, and the seconds that compiling, g++ and the call took."""
    start = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = round(now - start, 1), now

    with tempfile.TemporaryDirectory(prefix="lbc-emulated-") as name:
        folder = Path(name)
        artifact = lbcompiler.compile(
            model, f"cuda:{arch}", fmt, act, output=folder / "m.lbc", keep_source=True
        )
        lap("compile")
        with_emulated_kernels(artifact.path, arch)
        lap("emulation")
        ours = lbcompiler.compile(model, "cpu", fmt, act)
        feeds = synthetic_inputs(ours, {IDS: (1, tokens)})
        feeds[IDS] = np.random.default_rng(0).integers(0, VOCABULARY, (1, tokens))
        expected = ours.load().run(feeds)
        np.savez(folder / "inputs.npz", **feeds)
        lap("processor")
        found = on_fake_gpu(artifact.path, folder, arch)
        lap("call")
    return {
        "model": model.stem,
        "format": fmt,
        "act_format": act,
        "arch": arch,
        "db": {key: round(min(qsnr(y, found[key]), 1000.0), 1) for key, y in expected.items()},
        "kernels": len(artifact.manifest.kernels),
        "seconds": seconds,
    }


def on_fake_gpu(artifact: Path, folder: Path, arch: str) -> dict[str, Array]:
    """The outputs of the inputs in that folder."""
    done = run(
        "import numpy, lbcompiler\n"
        f"program = lbcompiler.load({str(artifact)!r})\n"
        f"outputs = program.run(dict(numpy.load({str(folder / 'inputs.npz')!r})))\n"
        f"numpy.savez({str(folder / 'outputs.npz')!r}, **outputs)\n",
        FAKE_CUDA_CAPABILITY=".".join(map(str, arch_named(arch).capability)),
    )
    if done.returncode:
        sys.exit(f"the emulated call failed: {done.stderr}")
    return dict(np.load(folder / "outputs.npz"))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model for GPUs, every kernel emulated.")
    add = parser.add_argument
    add("model", type=Path)
    add("--formats", type=listed, default=["nvfp4"])
    add("--act-formats", type=listed, default=["none"], help="same: that of the weights")
    add("--arch", default="sm_80")
    add("--tokens", type=int, default=16)
    return parser.parse_args()


def main() -> None:
    said = parsed()
    for fmt in said.formats:
        for act in said.act_formats:
            act_format = fmt if act == "same" else act
            row = compared(said.model, fmt, act_format, said.arch, said.tokens)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
