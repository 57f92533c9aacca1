"""The float source model beside the compiled one: onnxruntime for ONNX, torch for `.pt2`.

An independent runtime, not our own float path: a mistake of a frontend must not hide in both sides.
Values inside the model are tapped where `verify --per-layer` asks. In ONNX they become outputs of
a copy of the graph held in memory (external data stays where it is, and must stay inside the
model's folder); in torch an interpreter keeps them by the name of their node.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import InputError, ModelError
from lbcompiler.frontend import kind_of

Array = NDArray[Any]

FLOATS = {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64"}
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
        self._types = {value.name: value.type for value in self._session.get_inputs()}
        self.inputs = tuple(self._types)
        self._values = [value.name for value in self._session.get_outputs()]
        self.outputs = tuple(self._values[: len(self._values) - added])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self._session.run(self._values, self._cast(feeds))
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run the reference {self._path}: {error}"
            ) from None
        return dict(zip(self._values, values, strict=True))

    def _cast(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compiled models take every float as float32; the source has its own width."""
        return {
            name: array.astype(FLOATS[self._types[name]])
            if array.dtype.kind == "f" and self._types.get(name) in FLOATS
            else array
            for name, array in feeds.items()
        }


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
    """A `torch.export` program: called whole, or node by node where values are tapped."""

    def __init__(self, path: Any, taps: tuple[str, ...] = (), threads: int | None = None) -> None:
        """path: of a .pt2, or the program itself."""
        from lbcompiler.frontend.torch import functional_program
        from lbcompiler.frontend.torch_archive import load_program

        program = load_program(path) if isinstance(path, (str, Path)) else path
        path = path if isinstance(path, (str, Path)) else "in memory"
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        if taps:  # they are names of the program that was compiled
            program = functional_program(program)
            _refuse_unknown(path, taps, {node.name for node in program.graph.nodes})
        self._path, self._taps = path, frozenset(taps)
        self._module = program.module(check_guards=False)  # guards are source text from the file
        self._module.graph.set_codegen(torch.fx.graph.CodeGen())  # takes and returns a flat list
        self._module.recompile()
        specs = [s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self._arguments = [(spec.arg.name, getattr(spec.arg, "value", None)) for spec in specs]
        self._dtypes = {
            name: values[name].dtype
            for name, _ in self._arguments
            if isinstance(values.get(name), torch.Tensor)
        }
        self.inputs = tuple(name for name, _ in self._arguments if name in self._dtypes)
        self.outputs = tuple(map(str, program.graph_signature.user_outputs))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        kept: dict[str, Array] = {}

        def keep(name: str, value: Any, _bias: Any) -> None:
            kept[name] = _to_numpy(value)

        call = _tapping(self._module, self._taps, keep) if self._taps else self._module.forward
        with torch.no_grad():
            result = self._called(call, feeds)
        return kept | {
            name: _to_numpy(value) for name, value in zip(self.outputs, result, strict=True)
        }

    def graded(self, feeds: Mapping[str, Array]) -> tuple[list[Any], dict[str, tuple[Any, Any]]]:
        """The outputs, and (value, bias that it holds or None) of the taps by name, as tensors:
        once something made of the outputs was differentiated, `grad` of a value holds its gradient.
        Raises InputError.
        """
        self._module.requires_grad_(False)
        kept: dict[str, tuple[Any, Any]] = {}

        def keep(name: str, value: Any, bias: Any) -> None:
            kept[name] = value, bias
            if value.requires_grad:
                value.retain_grad()
            else:
                value.requires_grad_()

        return list(self._called(_tapping(self._module, self._taps, keep), feeds)), kept

    def _called(self, call: Callable[..., Any], feeds: Mapping[str, Array]) -> Any:
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(f"the reference {self._path} needs the input {', '.join(missing)}")
        arguments = [
            self._tensor(feeds[name], self._dtypes[name]) if name in self._dtypes else fixed
            for name, fixed in self._arguments
        ]
        try:
            return call(*arguments)
        except Exception as error:  # wrong shapes and dtypes have many types
            raise InputError(f"torch cannot run the reference {self._path}: {error}") from None

    @staticmethod
    def _tensor(array: Array, dtype: Any) -> Any:
        """Compiled models take every float as float32; the program has its own width."""
        import torch

        tensor = torch.from_numpy(np.array(array))
        is_float = tensor.is_floating_point() and dtype.is_floating_point
        return tensor.to(dtype) if is_float else tensor


def _tapping(
    module: Any, taps: frozenset[str], keep: Callable[[str, Any, Any], None]
) -> Callable[..., Any]:
    """`module` node by node; of `taps`, `keep` is given the name, the value and its bias."""
    import torch

    class Tapping(torch.fx.Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if node.name in taps:
                keep(node.name, value, _bias(node.target, *self.fetch_args_kwargs_from_env(node)))
            return value

    run: Callable[..., Any] = Tapping(module).run
    return run


def _bias(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The bias that a linear or a convolution adds, None for none and for any other operator."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return given.get("self" if schema.name == "aten::addmm" else "bias")


def _to_numpy(value: Any) -> Array:
    """numpy has no bfloat16: it becomes float32, exactly."""
    tensor = value.detach()
    result: Array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return result


def _refuse_unknown(path: str | Path, taps: Iterable[str], known: set[str]) -> None:
    unknown = [tap for tap in taps if tap not in known]
    if unknown:
        raise ModelError(
            f"the reference {path} has no value named {unknown[0]!r}: it is not the model that the "
            "artifact was compiled from"
        )
