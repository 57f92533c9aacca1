"""What transformers exports, and the built .pt2 models: imported, run in float, equal to torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbcompiler.frontend.torch import import_torch
from lbcompiler.frontend.torch_archive import load_program
from lbcompiler.ir.model import Dim, Model
from tests.frontend.float_runner import compile_float

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.real
Tensor = Any


FLOAT_NOISE = 100.0  # dB: a relative error of 1e-5
# SmolLM2 on random ids, against float64: here 108 to 117 dB (sums one by one), torch 118 to
# 124 in float32; rare tokens with massive activations cost more.
DEEP_FLOAT_NOISE = 80.0


def assert_equal(
    run: Any, model: Model, program: Any, feeds: dict[str, Tensor], least: float = FLOAT_NOISE
) -> None:
    with torch.no_grad():
        expected = program(**feeds)
    expected = list(expected.values()) if isinstance(expected, dict) else expected
    expected = expected if isinstance(expected, list | tuple) else [expected]
    outputs = run({name: value.numpy() for name, value in feeds.items()})
    for port, y, reference in zip(model.outputs, outputs, expected, strict=True):
        reference = reference.double().numpy()
        decibels = 10 * np.log10(np.sum(reference**2) / np.sum((y - reference) ** 2))
        assert decibels >= least, port


def test_a_llama_as_transformers_exports_it() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    program = torch.export.export(
        llama,
        (),
        {"input_ids": torch.zeros(1, 9, dtype=torch.int64), "use_cache": False},
        dynamic_shapes={
            "input_ids": {1: torch.export.Dim("length", min=2, max=512)},
            "use_cache": None,
        },
    )
    model = import_torch(program, {"input_ids": [1, "length"]})
    assert model.dims == (Dim("length", 2, 512),)
    assert model.outputs[0].name == "logits"
    assert "model.layers.1.mlp.down_proj" in model.layers
    text = str(model.module["main"])
    assert not any(name in text for name in ("cumsum", "index_tensor", "match_cast"))
    run = compile_float(model)
    for length in (2, 33):
        ids = torch.randint(0, 200, (1, length))
        assert_equal(run, model, lambda input_ids: llama(input_ids).logits, {"input_ids": ids})


def test_a_bert_as_transformers_exports_it() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    bert = transformers.BertModel(config).eval()
    batch, length = torch.export.Dim("batch", min=2, max=16), torch.export.Dim("length", max=64)
    ids = torch.zeros(2, 9, dtype=torch.int64)
    program = torch.export.export(
        bert,
        (),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
    )
    model = import_torch(program)
    assert [port.name for port in model.outputs] == ["last_hidden_state", "pooler_output"]
    assert "encoder.layer.0.attention.self.query" in model.layers
    run = compile_float(model)
    for shape in ((2, 9), (3, 17)):
        mask = torch.ones(shape, dtype=torch.int64)
        mask[1, 5:] = 0
        feeds = {"input_ids": torch.randint(0, 100, shape), "attention_mask": mask}
        assert_equal(run, model, lambda **inputs: bert(**inputs).to_tuple(), feeds)


def test_minilm(built: Callable[[str], Path]) -> None:
    torch.manual_seed(0)
    path = built("minilm.pt2")
    model = import_torch(path)
    linears = [layer for layer in model.layers.values() if layer.op == "Linear"]
    assert len(linears) == 36
    assert [dim.high for dim in model.dims] == [1024, 512]
    run, program = compile_float(model), load_program(path).module()
    for shape in ((1, 1), (2, 12)):
        mask = torch.ones(shape, dtype=torch.int64)
        mask[-1, 7:] = 0
        feeds = {
            "input_ids": torch.randint(0, 30000, shape),
            "attention_mask": mask,
            "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        }
        assert_equal(run, model, program, feeds)


@pytest.mark.slow
def test_smollm2(built: Callable[[str], Path]) -> None:
    torch.manual_seed(0)
    program = load_program(built("smollm2.pt2"))
    model = import_torch(program)
    linears = [layer for layer in model.layers.values() if layer.op == "Linear"]
    assert len(linears) == 211
    assert sum(weight.nbytes for weight in model.weights.values()) < 540e6  # the head is tied
    assert "match_cast" not in str(model.module["main"])
    run = compile_float(model)
    for shape in ((1, 1), (2, 5)):
        ids = torch.randint(0, 49152, shape)
        assert_equal(run, model, program.module(), {"input_ids": ids}, DEEP_FLOAT_NOISE)
