"""The float source model beside the compiled one: onnxruntime for ONNX, torch for `.pt2`.

An independent runtime, not our own float path: a mistake of a frontend must not hide in both sides.
Values inside the model are tapped where `verify --per-layer` asks. In ONNX they become outputs of
a copy of the graph held in memory (external data stays where it is, and must stay inside the
model's folder); in torch an interpreter keeps them by the name of their node.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import InputError, ModelError
from lbcompiler.frontend import kind_of

Array = NDArray[Any]

EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Reference(Protocol):
    """A float model that runs on numpy arrays."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs and taps by name. Raises InputError."""
        ...


def open_reference(
    path: str | Path, taps: Iterable[str] = (), threads: int | None = None
) -> Reference:
    """The model of a `.onnx` or `.pt2` file with values to tap. Raises ModelError."""
    reference = TorchReference if kind_of(path) == "torch" else OnnxReference
    return reference(Path(path), tuple(dict.fromkeys(taps)), threads)


class OnnxReference:
    """onnxruntime on the CPU, all of its own graph optimizations on."""

    def __init__(self, path: Path, taps: tuple[str, ...] = (), threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings about the model are not ours to pass on
        if threads is not None:
            options.intra_op_num_threads = threads
        source: str | bytes = str(path)
        added = 0
        if taps:
            source, added = _with_outputs(path, taps)
            options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(path.resolve().parent))
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no class of their own
            raise ModelError(f"onnxruntime cannot load the reference {path}: {error}") from None
        self._path = path
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self._values = [value.name for value in self._session.get_outputs()]
        self.outputs = tuple(self._values[: len(self._values) - added])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(self._values, dict(feeds))
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run the reference {self._path}: {error}"
            ) from None
        return dict(zip(self._values, values, strict=True))


def _with_outputs(path: Path, taps: tuple[str, ...]) -> tuple[bytes, int]:
    """The model with `taps` as last graph outputs (their types are inferred), and how many."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's decoding errors share no class either
        raise ModelError(f"cannot read the reference {path}: {error}") from None
    known = {value for node in model.graph.node for value in node.output}
    _refuse_unknown(path, taps, known | {value.name for value in model.graph.input})
    outputs = {value.name for value in model.graph.output}
    added = [onnx.ValueInfoProto(name=tap) for tap in taps if tap not in outputs]
    model.graph.output.extend(added)
    try:
        return model.SerializeToString(), len(added)
    except ValueError as error:  # protobuf's limit of 2 GiB
        raise ModelError(
            f"the reference {path} is too large to look inside ({error}): store its weights as "
            "external data, or leave out --per-layer"
        ) from None


class TorchReference:
    """A `torch.export` program, interpreted node by node."""

    def __init__(self, path: Path, taps: tuple[str, ...] = (), threads: int | None = None) -> None:
        try:
            import torch
        except ImportError:
            raise ModelError(
                f"the reference {path} needs torch to run: pip install 'lbcompiler[torch]'"
            ) from None
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            program = torch.export.load(path)
        except Exception as error:  # zipfile's, json's, torch's: any of them
            raise ModelError(f"torch cannot load the reference {path}: {error}") from None
        _refuse_unknown(path, taps, {node.name for node in program.graph.nodes})
        self._path, self._taps, self._module = path, taps, program.module()
        self.inputs = tuple(map(str, program.graph_signature.user_inputs))
        self.outputs = tuple(map(str, program.graph_signature.user_outputs))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch
        from torch.utils import _pytree as pytree

        kept: dict[str, Array] = {}
        taps = frozenset(self._taps)

        class Tapping(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
            def run_node(self, node: Any) -> Any:
                value = super().run_node(node)
                if node.name in taps:
                    kept[node.name] = _to_numpy(value)
                return value

        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(f"the reference {self._path} needs the input {', '.join(missing)}")
        arguments = [torch.from_numpy(np.array(feeds[name])) for name in self.inputs]
        try:
            with torch.no_grad():
                result = Tapping(self._module).run(*arguments)
        except Exception as error:  # a failed guard is an AssertionError, a shape a RuntimeError
            raise InputError(f"torch cannot run the reference {self._path}: {error}") from None
        leaves, _ = pytree.tree_flatten(result)
        return kept | {
            name: _to_numpy(value) for name, value in zip(self.outputs, leaves, strict=True)
        }


def _to_numpy(value: Any) -> Array:
    """numpy has no bfloat16: it becomes float32, exactly."""
    tensor = value.detach()
    result: Array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return result


def _refuse_unknown(path: Path, taps: Iterable[str], known: set[str]) -> None:
    unknown = [tap for tap in taps if tap not in known]
    if unknown:
        raise ModelError(
            f"the reference {path} has no value named {unknown[0]!r}: it is not the model that the "
            "artifact was compiled from"
        )
