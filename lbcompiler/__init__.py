"""lbcompiler: from float models to block-scaled low-bit code.

    import lbcompiler
    artifact = lbcompiler.compile("model.onnx", target="cpu", format="nvfp4", output="model.lbc")
    outputs = lbcompiler.load("model.lbc")(input_ids)

Names are loaded when they are asked for, so that a command that needs no compiler does not wait for
one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbcompiler.artifact import Artifact, open_artifact
    from lbcompiler.compiler import compile, plan
    from lbcompiler.config import CompileConfig
    from lbcompiler.errors import LbcError
    from lbcompiler.formats import FORMATS
    from lbcompiler.report.analysis import Analysis
    from lbcompiler.report.analyzer import analyze
    from lbcompiler.runtime import Program, load
    from lbcompiler.targets import TARGETS
    from lbcompiler.tuning.tuner import tune

_HOME = {
    "Artifact": "artifact",
    "open_artifact": "artifact",
    "compile": "compiler",
    "plan": "compiler",
    "CompileConfig": "config",
    "LbcError": "errors",
    "FORMATS": "formats",
    "Analysis": "report.analysis",
    "analyze": "report.analyzer",
    "Program": "runtime",
    "load": "runtime",
    "TARGETS": "targets",
    "tune": "tuning.tuner",
}

__all__ = [
    "FORMATS",
    "TARGETS",
    "Analysis",
    "Artifact",
    "CompileConfig",
    "LbcError",
    "Program",
    "analyze",
    "compile",
    "load",
    "open_artifact",
    "plan",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lbcompiler' has no attribute {name!r}")
    value = getattr(import_module(f"lbcompiler.{_HOME[name]}"), name)
    globals()[name] = value
    return value
