"""The ONNX file as a protobuf that holds what the importer relies on, or a ModelError that says why
not.

External data is not read here, so a model of any size costs only its structure. Model-local
functions are inlined at once: what follows sees nodes of operators only.
"""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import defs, inliner

from lbcompiler.errors import ModelError

OLDEST = 7  # operators broadcast as numpy does since then
NEWEST = defs.onnx_opset_version()
MAIN = ("", "ai.onnx")


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model at `path`, checked for what damages of a file leave behind."""
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"There is no file {str(path)!r}.") from None
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(
            f"{str(path)!r} is not an ONNX model, or it is damaged or truncated ({error}). "
            "Give a file that was exported as ONNX."
        ) from None
    return checked(model, path)


def checked(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its own functions inlined, or the ModelError that it deserves."""
    if not model.graph.node and not model.graph.output:
        raise ModelError(
            f"{str(path)!r} holds no ONNX graph: it is not an ONNX model, or it is truncated. Give "
            "a file that was "
            "exported as ONNX."
        )
    opset(model, str(path))
    if not model.graph.output:
        raise ModelError(f"{str(path)!r} has no outputs: it is truncated. Export the model again.")
    if model.functions:
        model = inliner.inline_local_functions(model)
    return model


def opset(model: onnx.ModelProto, path: str) -> int:
    """The version of the main operator set."""
    versions = [entry.version for entry in model.opset_import if entry.domain in MAIN]
    if not versions:
        raise ModelError(
            f"{path!r} does not say which ONNX opset it uses, so its operators have no defined "
            "meaning: the file is "
            "damaged or hand-made. Export the model again."
        )
    if not OLDEST <= versions[0] <= NEWEST:
        raise ModelError(
            f"{path!r} uses ONNX opset {versions[0]}; opsets {OLDEST} to {NEWEST} can be compiled. "
            "Export the model "
            "with a newer opset, or convert it with onnx.version_converter."
        )
    return int(versions[0])
