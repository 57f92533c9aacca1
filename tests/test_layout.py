"""The architecture, checked: the wheel holds every folder, and imports flow one way."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOW = {"formats", "errors"}
BELOW_PASSES = FLOW | {"ir", "quantizers"}
MAY_IMPORT = {  # folder: what it may import from lbcompiler
    "lbcompiler/formats": FLOW,
    "lbcompiler/ir": FLOW | {"ir"},
    "lbcompiler/quantizers": FLOW | {"ir", "quantizers"},
    "lbcompiler/frontend": FLOW | {"ir", "frontend"},
    "passes": BELOW_PASSES | {"passes", "pipeline"},
    "targets": BELOW_PASSES | {"files", "passes", "target", "targets"},
}


def imported_parts(path: Path) -> set[str]:
    """The first name after `lbcompiler.` of every import in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("lbcompiler.")}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_flow_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert imported_parts(path) <= MAY_IMPORT[folder], path


def test_no_file_reads_or_writes_pickle() -> None:
    for folder in ("lbcompiler", "passes", "targets", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "import pickle" not in path.read_text(), path
            assert "allow_pickle=True" not in path.read_text(), path


def test_the_wheel_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = {
        "lbcompiler": "lbcompiler",
        "passes": "lbcompiler.passes",
        "targets": "lbcompiler.targets",
    }
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / top).parts))
        for top, name in tops.items()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == found
