"""Ctrl-C while `lbc` learns and decides: the process ends at once, and the next run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lbcompiler
from lbcompiler.artifact import WEIGHTS
from lbcompiler.decisions.work import Work

LAYERS, WIDTH, ROWS, BATCHES = 12, 128, 16, 24
STOPPED = 10  # the batch before which Ctrl-C is pressed; of those before it one judges
SECONDS = 60.0  # for the process to come so far, or to end
ASKED = {"format": "nvint4", "quantizer": "gptq", "hadamard": "auto"}

DATA = """
import os, signal
from pathlib import Path
import numpy as np

PASS = [0]

def feeds():
    PASS[0] += 1
    for i in range({batches}):
        if PASS[0] == 2 and i == {stopped} and Path("stop").exists():
            os.kill(os.getpid(), signal.SIGINT)
        yield {{"x": np.random.default_rng(i).standard_normal(({rows}, {width}), np.float32)}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of linears in a row, and a module of data that may press Ctrl-C in its second pass,
    which is that of the calibration.
    """
    folder = tmp_path_factory.mktemp("interrupted")
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.standard_normal((WIDTH, WIDTH), np.float32) / 8, f"w{i}")
        for i in range(LAYERS)
    ]
    names = ["x", *(f"h{i}" for i in range(LAYERS - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], f"layer{i}")
        for i in range(LAYERS)
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    text = DATA.format(stopped=STOPPED, batches=BATCHES, rows=ROWS, width=WIDTH)
    (folder / "interrupting.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """The digest of the weights of a run that nobody stops."""
    return decided(folder, folder / "whole.state")[0]


def decided(folder: Path, state: Path) -> tuple[str, list[str]]:
    """The digest of the weights, and the steps of calibration and quantizing that were taken."""
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lbcompiler.compiler._build", lambda *_: [])
        artifact = lbcompiler.compile(
            "m.onnx",
            "cpu",
            calibration_data="interrupting:feeds",
            work=Work(state, jobs=1),
            progress=lambda stage, done, _total: steps.append(f"{stage} {done}"),
            **ASKED,
        )
    return artifact.manifest.files[WEIGHTS], steps


@pytest.mark.parametrize("stage", ["calibrate", "quantize"])
def test_ctrl_c_loses_nothing(stage: str, folder: Path, whole: str) -> None:
    state, stop = folder / f"{stage}.state", folder / "stop"
    if stage == "calibrate":
        stop.touch()
    said = [f"--{name}={value}" for name, value in ASKED.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "lbcompiler", "compile", "m.onnx", *said, "--state", state,
         "--calibration-data", "interrupting:feeds", "--jobs", "1", "-o", "out.lbc"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + SECONDS
        while stage == "quantize" and len(list(state.glob("candidates-*/*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        if stage == "quantize":
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()  # where it was not as expected
    stop.unlink(missing_ok=True)
    assert errors.splitlines()[-1:] == ["error: interrupted"], errors
    assert process.returncode == 130
    assert not list(folder.glob("*.lbc"))
    resumed, steps = decided(folder, state)
    assert resumed == whole
    if stage == "calibrate":
        assert next(s for s in steps if s.startswith("calibrate ")) == f"calibrate {STOPPED - 1}"
        return
    assert not any(s.startswith("calibrate ") for s in steps)
    done = next(int(s.split()[1]) for s in steps if s.startswith("quantize "))
    assert 2 <= done < LAYERS
