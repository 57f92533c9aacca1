"""models/generate.py on a small decoder: both runtimes give the same tokens, errors are a line."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import lbcompiler
from tests.cached_decoder import WORDS, write_decoder

SCRIPT = Path(__file__).parents[1] / "models" / "generate.py"
tokenizers = pytest.importorskip("tokenizers", reason="generate.py reads a tokenizer with it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cached.onnx, cached.lbc in float32 and tokenizer.json: the words w0, w1, .."""
    path = tmp_path_factory.mktemp("decoder")
    model = write_decoder(path / "cached.onnx")
    lbcompiler.compile(model, exclude=".*", output=path / "cached.lbc")
    words = {f"w{i}": i for i in range(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def command(folder: Path, *options: str, artifact: str = "cached.lbc") -> list[str]:
    tokenizer = str(folder / "tokenizer.json")
    base = [sys.executable, str(SCRIPT), str(folder / artifact), "--tokenizer", tokenizer]
    return [*base, "--threads", "1", *options]


def run(*line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_both_runtimes_continue_a_text_alike_and_say_how_fast(folder: Path) -> None:
    options = ("--prompt", "w3 w7 w1", "--tokens", "12", "--onnx", str(folder / "cached.onnx"))
    done = run(*command(folder, *options))
    assert done.returncode == 0, done.stderr
    ours, our_rates, theirs, their_rates = done.stdout.splitlines()
    assert ours == theirs
    assert ours.startswith("w3 w7 w1 w")
    assert len(ours.split()) == 3 + 12
    for name, rates in (("cached.lbc", our_rates), ("onnxruntime, cached.onnx", their_rates)):
        said = r"3 tokens of prompt at [\d.]+ tokens/s, 11 more at [\d.]+ tokens/s"
        assert re.match(f"{name}: {said}", rates)
    assert not done.stderr  # progress is for terminals


LLAMA_CPP = """
import ctypes

class Llama:
    def __init__(self, path, **said):
        assert said["n_threads"] == said["n_threads_batch"] == 1
        self.ctx, self.tokens = (ctypes.c_float * 16)(), []
    def n_vocab(self):
        return 16
    def eval(self, ids):
        self.tokens += ids
        self.ctx[:] = [float(i == len(self.tokens) % 16) for i in range(16)]
    def reset(self):
        self.tokens = []

def llama_get_logits(ctx):
    return ctypes.cast(ctx, ctypes.POINTER(ctypes.c_float))
"""


def beside_a_double(folder: Path, packages: Path, *options: str) -> str:
    """The line of rates of a runtime whose package is a double in `packages`, and whose next token
    is the number of those before.
    """
    line = command(folder, "--prompt", "w3 w7 w1", "--tokens", "4", *options)
    held = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=held)
    assert done.returncode == 0, done.stderr
    *_, text, rates = done.stdout.splitlines()
    assert text == "w3 w7 w1 w3 w4 w5 w6"
    return rates


def test_llama_cpp_beside_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    rates = beside_a_double(folder, tmp_path, "--gguf", "some.gguf")
    assert rates.startswith("llama.cpp, some.gguf: 3 tokens of prompt at")


OPENVINO = """
import sys
from types import ModuleType, SimpleNamespace

import numpy as np

pairs = {}
passes = ModuleType("openvino.passes")
passes.MakeStateful = dict
passes.Manager = lambda: SimpleNamespace(register_pass=pairs.update, run_passes=lambda model: None)
sys.modules["openvino.passes"] = passes

class Model:
    inputs = [SimpleNamespace(any_name=name, partial_shape=[-1, 2, -1, 8])
              for name in ("past_key_0", "input_ids", "past_value_0")]
    outputs = [SimpleNamespace(any_name=name)
               for name in ("logits", "present_key_0", "present_value_0")]
    def reshape(self, shapes):
        assert set(map(tuple, shapes.values())) == {(1, 2, -1, 8)}

class Request:
    tokens = 0
    def infer(self, feeds):
        self.tokens += feeds["input_ids"].size
        return {"logits": np.eye(16)[[[self.tokens]]]}
    def reset_state(self):
        self.tokens = 0

class Core:
    def read_model(self, path):
        return Model()
    def compile_model(self, model, device, settings):
        assert pairs == {"past_key_0": "present_key_0", "past_value_0": "present_value_0"}
        assert (device, settings) == ("CPU", {"INFERENCE_NUM_THREADS": 1})
        return SimpleNamespace(create_infer_request=Request)
"""


def test_openvino_beside_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text(OPENVINO)
    rates = beside_a_double(folder, tmp_path, "--openvino", "some.xml")
    assert rates.startswith("openvino, some.xml: 3 tokens of prompt at")


def test_openvino_continues_alike_where_it_is_installed(folder: Path) -> None:
    """Its default arithmetic is bfloat16 where the processor has it; no token is near a tie."""
    pytest.importorskip("openvino")
    options = ("--prompt", "w3 w7 w1", "--tokens", "12", "--openvino", str(folder / "cached.onnx"))
    done = run(*command(folder, *options))
    assert done.returncode == 0, done.stderr
    ours, _, theirs, rates = done.stdout.splitlines()
    assert ours == theirs
    assert rates.startswith("openvino, cached.onnx: 3 tokens of prompt at")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", ""), "the prompt is empty"),
        (("--tokens", "0"), "--tokens is 0; it must be 1 or more"),
        (("--onnx", "nothing.onnx"), "nothing.onnx cannot be run as a decoder"),
        (("--openvino", "nothing.xml"), "nothing.xml cannot be run as a decoder"),
        (("--tokenizer", "nothing.json"), "there is no tokenizer nothing.json"),
    ],
)
def test_what_is_wrong_is_said_with_code_2(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    done = run(*command(folder, *options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_artifact_that_is_none(folder: Path) -> None:
    done = run(*command(folder, artifact="cached.onnx"))
    assert done.returncode == 2
    assert "is no artifact" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_interruption_ends_with_130_and_what_there_is(folder: Path) -> None:
    terminal, side = os.openpty()
    line = command(folder, "--prompt", "w3 w7", "--tokens", "100000000")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=side, start_new_session=True)
    os.close(side)
    while b"token 3 of" not in os.read(terminal, 4096):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    said = b""
    with suppress(OSError):  # what a terminal's reader gets when the other side is closed
        while part := os.read(terminal, 4096):
            said += part
    out, _ = process.communicate(timeout=30)
    os.close(terminal)
    assert process.returncode == 130
    assert out.startswith(b"w3 w7 w")
    assert b"Traceback" not in said
