"""Model files and programs -> `ir.model.Model`: the one place that asks which kind it is."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lbcompiler.errors import ModelError
from lbcompiler.ir.model import Dim, Model

Shapes = Mapping[str, Sequence[int | str | Dim]]
Kind = Literal["onnx", "torch"]


def kind_of(model: Any) -> Kind:
    """onnx or torch, by suffix for a file and by type for an object. Raises ModelError."""
    if isinstance(model, (str, Path)):
        suffix = Path(model).suffix.lower()
        if not Path(model).is_file():
            raise ModelError(f"there is no model file {str(model)!r}")
        if suffix == ".onnx":
            return "onnx"
        if suffix == ".pt2":
            return "torch"
        raise ModelError(
            f"{str(model)!r} is neither .onnx nor .pt2: export the model with torch.onnx.export or "
            "torch.export.save"
        )
    if type(model).__name__ == "ModelProto":
        return "onnx"
    if type(model).__name__ == "ExportedProgram":
        return "torch"
    raise ModelError(
        f"cannot compile a {type(model).__name__}: give a path, an onnx.ModelProto or a "
        "torch.export.ExportedProgram"
    )


def import_model(model: Any, input_shapes: Shapes) -> Model:
    """The model as Relax with our ops. Raises ModelError, naming node and operator."""
    if kind_of(model) == "onnx":
        from lbcompiler.frontend.onnx import import_onnx

        return import_onnx(model, input_shapes)
    from lbcompiler.frontend.torch import import_torch

    return import_torch(model, input_shapes)


def hash_of(model: Any) -> str:
    """sha256 of the model file (not of its external data), "" for a model in memory."""
    if not isinstance(model, (str, Path)):
        return ""
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
