"""Read a .pt2 file without running what it holds.

`torch.export.load` trusts its file: weights and constants may be pickles, sample inputs fall back
to a full unpickling, an archive may carry native code, and the sizes are strings that sympy
evaluates. So the archive is looked through first, and what could execute is refused: only raw
tensors, sample inputs that torch's weights-only unpickler takes, and sizes made of arithmetic pass.
"""

import ast
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbcompiler.errors import ModelError

CODE_FOLDER = "data/aotinductor/"
SAMPLES_FOLDER = "data/sample_inputs/"
RESAVE = "save it again with torch.export.save of torch 2.9 or newer"
OBJECTS = ("custom_obj_", "opaque_obj_")
# What torch prints for a size: sympy constructors, and its own from torch.utils._sympy.functions.
SIZE_FUNCTIONS = frozenset({
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float", "FloatPow",
    "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv",
    "Integer", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul",
    "Ne", "Not", "Or", "Pow", "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal",
    "RoundToInt", "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat",
    "TruncToInt", "Unequality", "Where", "ceiling", "floor",
})  # fmt: skip
SIZE_SYNTAX = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def load_program(path: str | os.PathLike[str]) -> Any:
    """The torch.export.ExportedProgram of a .pt2 file; ModelError if it is none, or not safe."""
    try:
        import torch
    except ImportError:
        raise ModelError(
            f"{path} is a torch.export program and torch is not installed: "
            "pip install 'lbcompiler[torch]', or export the model to ONNX."
        ) from None
    check_archive(Path(path))
    try:
        return torch.export.load(os.fspath(path))
    except Exception as error:  # torch reports a bad archive by errors of many types
        line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path} cannot be read by torch {torch.__version__}: {line} "
            "Save it again with torch.export.save of this torch version, with outputs that are "
            "tensors, tuples or dicts."
        ) from error


def check_archive(path: Path) -> None:
    """Raise ModelError unless every part of the archive is data."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path} is no torch.export program, or is truncated ({error}): "
            "a .pt2 file is what torch.export.save writes."
        ) from None


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    root = f"{names[0].split('/')[0]}/" if names else ""
    members = [name.removeprefix(root) for name in names]
    if len(set(names)) < len(names) or not all(name.startswith(root) for name in names):
        raise ValueError("its members are ambiguous")
    if "archive_format" not in members or archive.read(f"{root}archive_format") != b"pt2":
        raise ModelError(
            f"{path} is no torch.export program, or is truncated (it lacks the mark of a .pt2): "
            "save the model with torch.export.save. TorchScript files and checkpoints of "
            "torch.save hold no graph that can be compiled."
        )
    for member in members:
        if member.startswith(CODE_FOLDER):
            raise _unsafe(path, member, "compiled code", RESAVE)
        if member.startswith(("data/weights/", "data/constants/")) and member.endswith(".pt"):
            raise _unsafe(path, member, "pickled tensors", RESAVE)
        if any(f"/{prefix}" in member for prefix in OBJECTS):
            raise _unsafe(
                path, member, "a pickled object", "export a model whose state is tensors only"
            )
        if member.startswith(SAMPLES_FOLDER):
            _check_samples(path, member, archive.read(root + member))
        if member.endswith("_config.json") or member.startswith("models/"):
            for key, value in _entries(json.loads(archive.read(root + member))):
                _check_entry(path, member, key, value)


def _check_entry(path: Path, member: str, key: str, value: Any) -> None:
    if key == "use_pickle" and value is True:
        raise _unsafe(
            path, member, "a pickled tensor", "make it a dense CPU tensor before the export"
        )
    if key == "expr_str" and not is_size(str(value)):
        raise _unsafe(path, member, f"a size that is no arithmetic ({value!r})", RESAVE)


def _check_samples(path: Path, member: str, data: bytes) -> None:
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # the unpickler's refusals have many types
        raise _unsafe(
            path,
            member,
            "sample inputs that are more than tensors",
            "set program.example_inputs = None before saving it",
        ) from None


def is_size(text: str) -> bool:
    """Whether a string that sympy will evaluate is arithmetic on symbols and numbers."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if not isinstance(node, SIZE_SYNTAX):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in SIZE_FUNCTIONS
        ):
            return False
        if isinstance(node, ast.Constant) and not _is_plain(node.value):
            return False
        if isinstance(node, ast.Name) and not _is_plain(node.id):
            return False
    return True


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):  # a symbol's name
        return value.isascii() and value.isidentifier() and "__" not in value
    return isinstance(value, int | float)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a JSON document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)


def _unsafe(path: Path, member: str, what: str, way_out: str) -> ModelError:
    return ModelError(
        f"{path} is not read, because {member} in it holds {what}, which could run code when "
        f"loaded: {way_out}, or pass the program in memory."
    )
