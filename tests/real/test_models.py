"""The builders make what their docstrings say."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.bench.fake_quantized import Array, Quantization, qsnr

MODELS = Path(__file__).parents[2] / "models"
Built = Callable[[str], Path]
SAME_ARITHMETIC = 90.0  # dB: float32 sums in another order, through up to 30 layers
WEIGHT_LAYERS = {
    "minilm.onnx": 36,
    "rapidocr_recognition.onnx": 33,
    "rapidocr_detection.onnx": 48,
    "rapidocr_angle.onnx": 43,
    "smollm2.onnx": 211,
}
pytestmark = pytest.mark.real
SLOW = {"smollm2", "smollm2.onnx"}


def each(names: Iterable[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in names]


def task_feeds(path: Path) -> dict[str, Array]:
    """Small real inputs: sentences, rendered lines, a page, tokens."""
    pytest.importorskip("tokenizers", reason="the tokenizers are read with it")
    pytest.importorskip("PIL", reason="the texts are rendered with it")
    from tests.bench.accuracy_tasks import TASKS

    feeds: dict[str, Array] = TASKS[path.stem].feeds(path.parent)
    return feeds


def dimensions(values: object) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]  # protobuf's repeated field
    }


def outputs_of(path: Path, feeds: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path))
    results: list[Array] = session.run(None, feeds)
    return results


@pytest.mark.parametrize("script", ["minilm.py", "rapidocr.py", "smollm2.py"])
def test_a_missing_package_is_one_line_and_code_2(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(MODELS / script), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "models/requirements.txt" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    find_spec("rapidocr_onnxruntime") is None, reason="the models are copied from this package"
)
def test_rapidocr_is_copied_again_over_itself(tmp_path: Path, built: Built) -> None:
    source = built("rapidocr_angle.onnx")
    for _ in range(2):
        subprocess.run(
            [sys.executable, str(MODELS / "rapidocr.py"), "--output", str(tmp_path)], check=True
        )
    assert (tmp_path / source.name).read_bytes() == source.read_bytes()


def test_minilm_has_dynamic_batch_and_length_and_names_of_modules(built: Built) -> None:
    graph = onnx.load(built("minilm.onnx")).graph
    assert dimensions(graph.input)["attention_mask"] == ["batch", "length"]
    assert dimensions(graph.output) == {
        "last_hidden_state": ["batch", "length", 384],
        "sentence_embedding": ["batch", 384],
    }
    assert "encoder.layer.0.attention.self.query" in {node.name for node in graph.node}


def test_smollm2_has_dynamic_batch_and_length_and_external_data(built: Built) -> None:
    path = built("smollm2.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    assert dimensions(graph.input) == {"input_ids": ["batch", "length"]}
    assert dimensions(graph.output) == {"logits": ["batch", "length", 49152]}
    assert path.stat().st_size < 1e6 < 5e8 < path.with_suffix(".onnx.data").stat().st_size


def test_sentence_embeddings_are_unit_vectors_and_ignore_padding(built: Built) -> None:
    path = built("minilm.onnx")
    feeds = task_feeds(path)
    _, together = outputs_of(path, feeds)
    length = int(feeds["attention_mask"][0].sum())
    _, alone = outputs_of(path, {name: value[:1, :length] for name, value in feeds.items()})
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


@pytest.mark.parametrize("name", each(["minilm", "smollm2"]))
def test_torch_program_and_onnx_file_are_one_model(name: str, built: Built) -> None:
    pytest.importorskip("torch", reason="a .pt2 file needs torch")
    from tests.bench.reference_torch import TorchReference

    program, path = built(f"{name}.pt2"), built(f"{name}.onnx")
    feeds = task_feeds(path)
    results = TorchReference(program, Quantization("none"))(feeds)
    for ours, theirs in zip(results.values(), outputs_of(path, feeds), strict=True):
        assert qsnr(theirs, ours) > SAME_ARITHMETIC


@pytest.mark.parametrize("name", each(WEIGHT_LAYERS))
def test_the_cut_model_is_onnxruntimes(name: str, built: Built) -> None:
    from tests.bench.reference import Reference

    path = built(name)
    feeds = task_feeds(path)
    reference = Reference(path, Quantization("none"))
    assert len(reference.layers) == WEIGHT_LAYERS[name]
    for ours, theirs in zip(reference(feeds).values(), outputs_of(path, feeds), strict=True):
        assert qsnr(theirs, ours) > SAME_ARITHMETIC
