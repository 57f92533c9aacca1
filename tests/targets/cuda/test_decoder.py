"""A decoder whose past grows in a GPU's memory: its session there says what it says on a CPU."""

from pathlib import Path

import numpy as np
import pytest

import lbcompiler
from tests.cached_decoder import STATES, WORDS, past_of, write_decoder
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import run, with_emulated_kernels
from tests.targets.cuda.shared import once

IDS = np.random.default_rng(1).integers(0, WORDS, (1, 11))
PIECES = (0, 5, 6, 11)  # a prompt, a token, and the rest

# Weights are the same numbers; activations are sums of two bfloat16 on the GPU, which are off by up
# to 2^-17 of them, and float32 on the CPU: 102 dB for one linear, and five follow each other.
MIN_QSNR_DB = 85.0

CODE = """
import sys
import numpy as np
import lbcompiler
program = lbcompiler.load(sys.argv[1])
given = np.load(sys.argv[2])
session = program.session(room=4)
results = {}
for i, (start, end) in enumerate(zip(given["pieces"], given["pieces"][1:])):
    results[f"logits_{i}"] = session(input_ids=given["ids"][:, start:end])["logits"]
results.update(session.states())
session.rewind(5)
results["again"] = session(input_ids=given["ids"][:, 5:6])["logits"]
past = {name: given[name] for name in given.files if name.startswith("past")}
results["alone"] = program(input_ids=given["ids"][:, :2], **past)["logits"]
np.savez(sys.argv[3], **results)
"""

FAILING = """
import os
import sys
import numpy as np
import lbcompiler
program = lbcompiler.load(sys.argv[1])
ids = np.load(sys.argv[2])["ids"]
session = program.session()
session(input_ids=ids[:, :5])
held, memories = session.states(), session._memory


def refused(call):
    try:
        call()
    except lbcompiler.LbcError as error:
        return f"{type(error).__name__}: {error}"


allocated, count = type(next(iter(memories.values())))._allocated, 0


def full_for_the_second(memory, room):
    global count
    count += 1
    if count == 2:
        os.environ["FAKE_CUDA_MEMORY"] = "1"
    return allocated(memory, room)


memory = next(iter(memories.values()))
type(memory)._allocated = full_for_the_second
long = np.resize(ids, (1, memory.room))
said = refused(lambda: session(input_ids=long))
assert "DeviceError: the GPU has not enough free memory" in said, said
assert session.pasts == dict.fromkeys(session.pasts, 5)
for name, rows in session.states().items():
    np.testing.assert_array_equal(rows, held[name])
del os.environ["FAKE_CUDA_MEMORY"]
other = program.session(room=2 * memory.room)
other(input_ids=ids[:, :5])
for one in (session, other):
    one(input_ids=long)
rooms = {held.room for held in session._memory.values()}
assert len(rooms) == 1, rooms
for name, rows in session.states().items():
    np.testing.assert_array_equal(rows, other.states()[name])
os.environ["FAKE_CUDA_LAUNCH"] = "719"
for call in (lambda: session(input_ids=ids[:, 5:]), session.states):
    assert "DeviceError: the GPU failed" in refused(call), refused(call)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """Of the CPU, and of the GPU that is not there."""
    folder = made(tmp_path_factory)
    return [dict(np.load(folder / f"{name}.npz")) for name in ("cpu", "gpu")]


def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "decoder", make)


def make(folder: Path) -> None:
    model = write_decoder(folder / "cached.onnx")
    np.savez(folder / "given.npz", ids=IDS, pieces=PIECES, **past_of(3))
    for name, target in (("cpu", "cpu"), ("gpu", "cuda:sm_80")):
        lbcompiler.compile(
            model,
            target=target,
            format="mxint8",
            act_format="none",
            output=folder / f"{name}.lbc",
            keep_source=target != "cpu",
        )
    with_emulated_kernels(folder / "gpu.lbc", "sm_80")
    for name in ("cpu", "gpu"):
        arguments = [str(folder / file) for file in (f"{name}.lbc", "given.npz", f"{name}.npz")]
        done = run(f"import sys; sys.argv[1:] = {arguments!r}\n{CODE}")
        assert done.returncode == 0, done.stderr


@needs.nvcc
@pytest.mark.parametrize(
    "name",
    ["logits_0", "logits_1", "logits_2", "again", "alone", *(f"present_{s}" for s in STATES)],
)
def test_the_same_as_on_a_cpu(name: str, results: list[dict[str, np.ndarray]]) -> None:
    expected, found = (held[name].astype(np.float64) for held in results)
    assert found.shape == expected.shape
    error = np.square(found - expected).sum()
    assert 10 * np.log10(np.square(expected).sum() / error) > MIN_QSNR_DB
    if name == "again":
        np.testing.assert_array_equal(results[1]["again"], results[1]["logits_1"])


@needs.nvcc
def test_a_session_that_the_gpu_fails_says_so_and_keeps_its_past(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = made(tmp_path_factory)
    arguments = [str(folder / name) for name in ("gpu.lbc", "given.npz")]
    done = run(f"import sys; sys.argv[1:] = {arguments!r}\n{FAILING}")
    assert done.returncode == 0, done.stderr


def test_a_cpu_has_no_text_to_keep(tmp_path: Path) -> None:
    with pytest.raises(lbcompiler.LbcError, match="--keep-source is for target cuda"):
        lbcompiler.compile(write_decoder(tmp_path / "cached.onnx"), target="cpu", keep_source=True)
