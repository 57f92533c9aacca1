"""Building code is most of what a decision costs here: what is built again is taken from memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from tvm_ffi import StructuralKey

from lbcompiler.ir.model import Dim
from lbcompiler.targets.cpu.build import build


@pytest.fixture(scope="session")
def remembered() -> Callable[..., Any]:
    """The build of a float model that is simulated: one executable for all equal modules."""
    built: dict[tuple[Any, ...], Any] = {}

    def once(module: Any, target: Any, dims: Sequence[Dim]) -> Any:
        key = (StructuralKey(module), str(target), tuple(dims))
        if key not in built:
            built[key] = build(module, target, dims)
        return built[key]

    return once


@pytest.fixture(autouse=True)
def _observed_once(remembered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcompiler.calibration.simulator.build", remembered)


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of manifest and weights alone, for tests that look at nothing else."""
    monkeypatch.setattr("lbcompiler.compiler._build", lambda *_: [])


@pytest.fixture(scope="session")
def short_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/tiny_lm.onnx whose head reads what the second of its four blocks writes."""
    model = onnx.load("models/tiny_lm.onnx")
    nodes = {node.name: node for node in model.graph.node}
    last, second = (nodes[name].input[0] for name in ("norm/Pow", "layers.2.attention_norm/Pow"))
    for node in model.graph.node:
        if node.name.startswith("norm/"):
            node.input[:] = [second if name == last else name for name in node.input]
    path = tmp_path_factory.mktemp("models") / "short_lm.onnx"
    onnx.save(onnx.utils.Extractor(model).extract_model(["input_ids"], ["logits"]), path)
    return path
