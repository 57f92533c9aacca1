"""SmolLM2 token by token is SmolLM2 on the whole text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import lbcompiler
from tests.bench.fake_quantized import Array, qsnr

Built = Callable[[str], Path]
SAME_ARITHMETIC = 90.0  # dB: float32 sums in another order, through 30 layers
TEXT = [504, 3575, 282, 4649, 314, 7042, 30, 657, 314, 3807, 335, 260, 6303, 3457, 281, 17398]
pytestmark = [pytest.mark.real, pytest.mark.slow]


def token_by_token(program: lbcompiler.Program) -> Iterator[Array]:
    """The logits behind a prompt of five tokens, and behind each token that follows."""
    session = program.session()
    yield session(input_ids=np.array([TEXT[:5]]))["logits"][0, -1]
    memory = {name: array.ctypes.data for name, array in session.states().items()}
    for token in TEXT[5:]:
        yield session(input_ids=np.array([[token]]))["logits"][0, -1]
    assert {name: array.ctypes.data for name, array in session.states().items()} == memory


def test_the_decode_graph_shares_the_weights_of_the_prefill_graph(built: Built) -> None:
    path = built("smollm2_decode.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    dims = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert dims["input_ids"] == ["batch", "length"]
    assert dims["past_value_29"] == ["batch", 3, "past", 64]
    assert dims["present_key_0"] == ["batch", 3, "past + length", 64]
    assert dims["logits"] == ["batch", 1, 49152]
    assert len(graph.input) == len(graph.output) == 61
    assert path.stat().st_size < 3e6
    assert not path.with_suffix(".onnx.data").exists()


def test_in_float_it_gives_the_logits_of_the_prefill_graph(built: Built) -> None:
    program = lbcompiler.compile(built("smollm2_decode.onnx"), exclude=".*").load()
    assert len(program.manifest.states) == 60
    prefill = onnxruntime.InferenceSession(str(built("smollm2.onnx")))
    (whole,) = prefill.run(["logits"], {"input_ids": np.array([TEXT])})
    for expected, logits in zip(whole[0, 4:], token_by_token(program), strict=True):
        assert qsnr(expected, logits) > SAME_ARITHMETIC


def test_in_mxint8_it_chooses_the_tokens_of_the_prefill_graph(built: Built) -> None:
    prefill, decode = (
        lbcompiler.compile(built(name), format="mxint8").load()
        for name in ("smollm2.onnx", "smollm2_decode.onnx")
    )
    whole = prefill(input_ids=np.array([TEXT]))["logits"]
    chosen = [int(logits.argmax()) for logits in token_by_token(decode)]
    assert chosen == whole[0, 4:].argmax(-1).tolist()
