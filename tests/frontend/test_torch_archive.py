"""A .pt2 that is none, is broken, or could run code is refused in one paragraph."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch import import_torch
from lbcompiler.frontend.torch_archive import is_size
from tests.frontend.float_runner import run_float

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Flatten(0)).eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(network, (torch.ones(5, 4),), dynamic_shapes=({0: rows},))
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    torch.export.save(program, path)
    return path


def rewritten(path: Path, into: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of the archive with each member changed, or left out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(into, "w") as target:
        for name in source.namelist():
            data = change(name.split("/", 1)[1], source.read(name))
            if data is not None:
                target.writestr(name, data)
    return into


def refusal(path: Any) -> str:
    with pytest.raises(ModelError) as caught:
        import_torch(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_saved_program_is_read(saved: Path) -> None:
    model = import_torch(saved)
    assert model.source == str(saved)
    assert model.outputs[0].shape == ("input_0 * 3",)
    x = np.ones((2, 4), np.float32)
    weight, bias = model.weights["0.weight"].load(), torch.export.load(saved).state_dict["0.bias"]
    (y,) = run_float(model, {"input": x})
    np.testing.assert_allclose(y, (x @ weight.T + bias.detach().numpy()).ravel(), 1e-6)


def test_files_that_are_no_program(saved: Path, tmp_path: Path) -> None:
    assert "no file" in refusal(tmp_path / "missing.pt2")
    text = tmp_path / "text.pt2"
    text.write_text("not a model")
    assert "is no torch.export program" in refusal(text)
    for share in (0.3, 0.9):
        cut = tmp_path / "cut.pt2"
        cut.write_bytes(saved.read_bytes()[: int(saved.stat().st_size * share)])
        assert "truncated" in refusal(cut)
    checkpoint = tmp_path / "checkpoint.pt2"
    torch.save({"weight": torch.ones(3)}, checkpoint)
    assert "torch.save hold no graph" in refusal(checkpoint)


def test_damaged_members(saved: Path, tmp_path: Path) -> None:
    def without_json(name: str, data: bytes) -> bytes:
        return data[:50] if name == "models/model.json" else data

    def without_weights(name: str, data: bytes) -> bytes | None:
        return None if name.startswith("data/weights/weight_") else data

    assert "truncated" in refusal(rewritten(saved, tmp_path / "a.pt2", without_json))
    assert "cannot be read" in refusal(rewritten(saved, tmp_path / "b.pt2", without_weights))


class Exploit:
    """Unpickled in full, it would make a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def test_pickles_and_code_are_never_loaded(saved: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    samples = tmp_path / "samples"
    torch.save(((Exploit(proof),), {}), samples)

    def with_samples(name: str, data: bytes) -> bytes:
        return samples.read_bytes() if name.startswith("data/sample_inputs/") else data

    def with_pickled_weight(name: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    def with_evaluated_size(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        document = json.loads(data)
        _first_size(document)["expr_str"] = f"__import__('os').mkdir({str(proof)!r})"
        return json.dumps(document).encode()

    assert "sample inputs" in refusal(rewritten(saved, tmp_path / "a.pt2", with_samples))
    assert "pickled tensor" in refusal(rewritten(saved, tmp_path / "b.pt2", with_pickled_weight))
    assert "no arithmetic" in refusal(rewritten(saved, tmp_path / "c.pt2", with_evaluated_size))
    for member in (
        "data/aotinductor/model/x.so",
        "data/weights/model.pt",
        "data/constants/opaque_obj_0",
    ):
        copy = rewritten(saved, tmp_path / "d.pt2", lambda _, data: data)
        with zipfile.ZipFile(copy, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/{member}", b"")
        assert f"{member} in it holds" in refusal(copy)
    assert not proof.exists()


def _first_size(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "expr_str" in value:
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in items if (found := _first_size(item))), {})


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s70', positive=True, integer=True)",
        "Mul(Integer(64), Symbol('s70', integer=True))",
        "FloorDiv(Add(Symbol('s0'), Integer(-1)), 2)",
        "s0*2 + Max(1, s1) >= 3",
    ],
)
def test_sizes_that_torch_writes(text: str) -> None:
    assert is_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "exec('1')",
        "Symbol('s0').__class__",
        "Symbol('__import__')",
        "(lambda: 1)()",
        "[1][0]",
        "Symbol('a b')",
        "f'{1}'",
        "Max.__mro__",
        "1 +",
    ],
)
def test_sizes_that_are_code(text: str) -> None:
    assert not is_size(text)


def test_without_torch_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from lbcompiler.frontend.torch import import_torch\n"
        "from lbcompiler.errors import ModelError\n"
        "try: import_torch('model.pt2')\n"
        "except ModelError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert "torch is not installed: pip install 'lbcompiler[torch]'" in run.stdout
