"""Run an artifact: numpy or DLPack arrays in, numpy arrays out, by name or by position."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from lbcompiler.artifact import (
    WEIGHTS,
    Artifact,
    LayerRecord,
    PortRecord,
    kernels_file,
    open_artifact,
)
from lbcompiler.devices import Gpu, Host, Place, failure, is_device_failure
from lbcompiler.errors import ArtifactError, InputError
from lbcompiler.ir.model import Array
from lbcompiler.session import Session
from lbcompiler.targets.cpu.isa import detect, isa_named, obstacle
from lbcompiler.targets.cpu.threads import set_threads
from lbcompiler.tensors import as_numpy
from lbcompiler.weights_file import map_weights

Observer = Callable[
    [LayerRecord, Array, Array | None], None
]  # (layer, output (rows, N), bias (N,) or None)


@dataclass(frozen=True)
class KernelCall:
    """One call within a run: a kernel's, operands before results, or the virtual machine's own.

    `layer` is the layer that it computes, where it is a linear's.
    """

    name: str
    seconds: float
    tensors: tuple[Any, ...]  # tvm.runtime.Tensor
    layer: LayerRecord | None


Watcher = Callable[[KernelCall], None]


def load(path: str | Path, threads: int | None = None, verify: bool = True) -> Program:
    """Open, check and load an artifact. `threads` None: one a physical core."""
    return Program(open_artifact(path, verify), threads)


class Program:
    """A loaded artifact. Calling it is not thread-safe: load one for each thread that calls."""

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        self.artifact = artifact
        self.manifest = artifact.manifest.program(_isa_for(artifact))
        self.place: Place = Host() if self._on_host else Gpu()
        self._threads = threads
        set_threads(threads)
        held = map_weights(artifact.path / WEIGHTS)
        missing = [name for name in self.manifest.parameters if name not in held]
        if missing:
            raise ArtifactError(
                f"{artifact.path} lacks the weight {missing[0]!r}: compile the model again"
            )
        self._weights = [self.place.held(held[name]) for name in self.manifest.parameters]
        self._vm = relax.VirtualMachine(self._library(), self.place.device)
        self._main = self._vm["main"]
        self._held = frozenset(weight.data_ptr() for weight in self._weights)
        self._states = {state.input: state for state in self.manifest.states}
        axes = {state.output: state.axis for state in self.manifest.states}
        self._axes = {port.name: axes.get(port.name, 0) for port in self.manifest.outputs}

    @property
    def _on_host(self) -> bool:
        return self.manifest.target.name == "cpu"

    def _library(self) -> Any:
        """The code of the virtual machine, and for a GPU what it launches."""
        isa = self.manifest.target.isa
        library = tvm.runtime.load_module(str(self.artifact.path / self._code_file(isa)))
        if not self._on_host:
            from lbcompiler.targets.cuda.device_code import DeviceCode

            kernels = DeviceCode.read(self.artifact.path / kernels_file(isa))
            for module in kernels.to_modules():
                library.imports[0].import_module(module)
        return library

    def _code_file(self, isa: str) -> str:
        return self.artifact.manifest.code_file(isa)

    def __call__(self, *args: Any, **named: Any) -> dict[str, Array]:
        """Outputs by name. Inputs by position, by name, or both: numpy or DLPack."""
        return self.run(self.by_name(self.manifest.inputs, args, named))

    def by_name(
        self, ports: Sequence[PortRecord], args: Sequence[Any], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a call for `ports`, by name."""
        if len(args) > len(ports):
            raise InputError(f"{len(args)} inputs were given, the model takes {_listed(ports)}")
        feeds = {port.name: value for port, value in zip(ports, args, strict=False)}
        twice = sorted(feeds.keys() & named.keys())
        if twice:
            raise InputError(f"input {twice[0]!r} was given by position and by name")
        return {**feeds, **named}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name. Raises InputError on a wrong name, dtype or shape.

        Nothing that is given is written to: a past is copied first; a `session` does without.
        """
        arrays, sizes = self.checked(feeds, self.manifest.inputs)
        tensors = [
            self._with_room(name, array, sizes) if name in self._states else self.place.put(array)
            for name, array in arrays.items()
        ]
        return self.arrays_of(self.execute(tensors, sizes), tensors)

    def session(self, room: int = 0) -> Session:
        """Calls that continue each other: what the model grows (keys and values) stays in place
        between them. `room` rows are made for it at first; InputError where it grows nothing.
        """
        return Session(self, room)

    def execute(self, tensors: Sequence[Any], sizes: Mapping[str, int]) -> Any:
        """What the code returns, given what it takes for each input; `sizes` hold the pasts."""
        pasts = [tvm_ffi.Shape(tuple(sizes[name] for name in self.manifest.pasts))]
        set_threads(self._threads)  # of this program; another may have set its own since
        try:
            return self._main(*tensors, *(pasts if self._states else ()), *self._weights)
        except Exception as error:  # TVM's errors share no class of their own
            if not self._on_host and is_device_failure(error):
                raise failure(error) from None
            if "match_cast" not in str(error):
                raise
            pairs = zip(self.manifest.inputs, tensors, strict=True)
            said = ", ".join(
                f"{port.name} {tuple(t.shape)}"
                for port, t in pairs
                if port.name not in self._states
            )
            raise InputError(
                f"the model does not take inputs of these sizes ({said}): {_reason(error)}"
            ) from None

    def arrays_of(
        self, returned: Any, given: Sequence[Any], skipped: Container[str] = ()
    ) -> dict[str, Array]:
        """What `execute` returned, but for `skipped`, as arrays that nobody else holds."""
        results = [returned] if isinstance(returned, tvm.runtime.Tensor) else returned
        taken = self._held.union(tensor.data_ptr() for tensor in given)
        arrays = {}
        for index, port in enumerate(self.manifest.outputs):
            if port.name in skipped:
                continue
            result = results[index]
            array = self.place.take(result, taken)
            arrays[port.name] = np.moveaxis(array, 0, self._axes[port.name])
            taken |= {result.data_ptr()}
        return arrays

    def _with_room(self, name: str, past: Array, sizes: Mapping[str, int]) -> Any:
        """A copy of a past in the layout of its memory, with the room that this call needs."""
        state = self._states[name]
        rows = state.rows if isinstance(state.rows, int) else sizes[state.rows]
        source = np.moveaxis(past, state.axis, 0)
        memory = self.place.memory(source.shape[1:], str(past.dtype), len(source) + rows)
        memory.write(source)
        return memory.tensor

    def observe(self, feeds: Mapping[str, Any], observer: Observer) -> dict[str, Array]:
        """`run`, with `observer` called after every linear's kernel, in order of execution."""

        def watcher(call: KernelCall) -> None:
            if call.layer is not None:
                bias = call.tensors[-2].numpy() if call.layer.bias else None
                observer(call.layer, call.tensors[-1].numpy(), bias)

        return self.watch(feeds, watcher)

    def watch(self, feeds: Mapping[str, Any], watcher: Watcher) -> dict[str, Array]:
        """`run`, with `watcher` called after every kernel and every call of the runtime. On a GPU
        each is waited for, so its launch is in its time.
        """
        pointers = {
            _address(w): name
            for name, w in zip(self.manifest.parameters, self._weights, strict=True)
        }
        waiting: dict[str, deque[LayerRecord]] = defaultdict(deque)
        for layer in self.manifest.layers:
            if layer.weights:
                waiting[layer.weights[0]].append(layer)
        start = 0.0

        def instrument(_func: Any, name: str, before: bool, _ret: Any, *args: Any) -> int:
            nonlocal start
            self.place.finish()
            if before:
                start = time.perf_counter()
                return 0
            seconds = time.perf_counter() - start
            tensors = tuple(a for a in args if isinstance(a, tvm.runtime.Tensor))
            layer = None
            if name.startswith("gemm_"):
                owner = next(
                    (pointers[_address(t)] for t in tensors if _address(t) in pointers), ""
                )
                queue = waiting[owner]
                if queue:
                    layer = queue[0]
                    queue.rotate(-1)
            watcher(KernelCall(name, seconds, tensors, layer))
            return 0

        self._vm.set_instrument(instrument)
        try:
            return self.run(feeds)
        finally:
            self._vm.set_instrument(lambda *_: 0)

    def checked(
        self, feeds: Mapping[str, Any], ports: Iterable[PortRecord]
    ) -> tuple[dict[str, Array], dict[str, int]]:
        """What is given for `ports`, in their order, and the sizes of their dynamic dimensions."""
        taken = {port.name: port for port in ports}
        for name in feeds:
            if name not in taken:
                raise InputError(
                    f"the model has no input {name!r}: it takes {_listed(taken.values())}"
                )
        sizes: dict[str, tuple[int, str]] = {}
        arrays = {}
        for name, port in taken.items():
            if name not in feeds:
                raise InputError(
                    f"input {name!r} is missing: the model takes {_listed(taken.values())}"
                )
            arrays[name] = as_numpy(feeds[name], name)
            self._check(port, arrays[name], sizes)
            if not (self._on_host or arrays[name].size or name in self._states):
                got = "x".join(map(str, arrays[name].shape))
                raise InputError(  # TVM would launch one block, which writes where nothing is
                    f"input {name!r} has shape {got}, and a GPU has no kernels for nothing: leave "
                    "out the call"
                )
        return arrays, {name: size for name, (size, _) in sizes.items()}

    def _check(self, port: PortRecord, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
        """Dtype, fixed dimensions, bounds, and one size for one name."""
        if str(array.dtype) != port.dtype:
            raise InputError(
                f"input {port.name!r} is {array.dtype}, the model takes {port.dtype}: "
                f"convert it, e.g. array.astype({port.dtype!r})"
            )
        said = "x".join(str(d) for d in port.shape) or "a scalar"
        got = "x".join(str(d) for d in array.shape) or "a scalar"
        if len(array.shape) != len(port.shape):
            raise InputError(f"input {port.name!r} has shape {got}, the model takes {said}")
        bounds = {dim.name: dim for dim in self.manifest.dims}
        for size, want in zip(array.shape, port.shape, strict=True):
            if isinstance(want, int):
                if size != want:
                    raise InputError(f"input {port.name!r} has shape {got}, the model takes {said}")
                continue
            before, where = sizes.setdefault(want, (size, port.name))
            if before != size:
                raise InputError(
                    f"dimension {want!r} is {size} in input {port.name!r} and {before} in {where!r}"
                )
            dim = bounds.get(want)
            if dim is not None and not dim.low <= size <= (dim.high or size):
                raise InputError(
                    f"dimension {want!r} of input {port.name!r} is {size}, outside "
                    f"{dim.low}..{dim.high or ''}: compile with a wider --input range"
                )


def _isa_for(artifact: Artifact) -> str:
    """Of the artifact's programs the one that this machine runs. Raises ArtifactError."""
    made, here = artifact.manifest.created_by.get("apache-tvm"), version("apache-tvm")
    if made != here:
        raise ArtifactError(
            f"{artifact.path} was compiled with apache-tvm {made}, and {here} is installed, which "
            f"cannot load its code: compile the model again, or install apache-tvm=={made}"
        )
    target = artifact.manifest.target
    if target.name == "cuda":
        from lbcompiler.targets.cuda.machine import program_for

        return program_for(artifact.manifest.isas, str(artifact.path))
    if target.name != "cpu":
        raise ArtifactError(
            f"{artifact.path} is for target {target.name!r}, which this runtime does not run"
        )
    if reason := obstacle(isa_named(target.isa)):
        raise ArtifactError(
            f"{artifact.path} was compiled for {target.isa}, {reason}: compile it "
            f"with --target cpu:{detect().name}"
        )
    return target.isa


def _reason(error: Exception) -> str:
    """What TVM says of two sizes that had to agree, without its own frame around it."""
    return str(error).strip().splitlines()[-1].partition(", ty=")[2] or str(error)


def _address(tensor: Any) -> int:
    return int(tensor.data_ptr())


def _listed(ports: Any) -> str:
    return ", ".join(f"{p.name} ({p.dtype} {'x'.join(map(str, p.shape))})" for p in ports)
