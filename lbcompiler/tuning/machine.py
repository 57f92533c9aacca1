"""The machine that candidates are timed on: this one, or one behind TVM RPC."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc

from lbcompiler.errors import ConfigError, last_line
from lbcompiler.targets.cpu.isa import Isa, detect
from lbcompiler.targets.cpu.objects import tir_pipeline
from lbcompiler.targets.cpu.processor import processor
from lbcompiler.targets.cpu.threads import set_threads
from lbcompiler.tuning.build import Code, Compile

SHARE_ALL_CORES = -3  # a mode of TVM's pool: threads stay unpinned, as in targets/cpu/threads.py


@dataclass(frozen=True)
class Machine:
    """`compiled` makes code of PrimFuncs by name, `load` a module of the code; `device` is where
    its tensors lie.
    """

    processor: str
    device: Any
    compiled: Compile
    load: Callable[[Code], Any]


@contextmanager
def open_machine(address: str | None, isa: Isa, threads: int | None) -> Iterator[Machine]:
    """`address`: `host:port` of an RPC server, `host:port:key` of a tracker; None is here.

    Raises ConfigError where the machine cannot be reached, or cannot run code of this ISA.
    """
    with tempfile.TemporaryDirectory(prefix="lbc-tune-") as folder:
        if address is None:
            yield _here(isa, threads, Path(folder))
        else:
            yield _there(address, isa, threads, Path(folder))


def _here(isa: Isa, threads: int | None, folder: Path) -> Machine:
    if not isa.runs_on(detect()):
        raise ConfigError(
            f"this machine cannot run {isa.name} code (its best is {detect().name}), so nothing "
            "can be timed here: name a machine that can with --rpc host:port, or say --target cpu"
        )
    set_threads(threads)
    numbers = count()

    def load(library: bytes) -> Any:
        path = folder / f"{next(numbers)}.so"  # the system loads a path once
        path.write_bytes(library)
        module = tvm.runtime.load_module(str(path))
        path.unlink()
        return module

    return Machine(processor(), tvm.cpu(), partial(_compiled, isa), load)


def _there(address: str, isa: Isa, threads: int | None, folder: Path) -> Machine:
    session = _connect(address)
    numbers = count()

    def load(library: bytes) -> Any:
        path = folder / f"{next(numbers)}.so"
        path.write_bytes(library)
        session.upload(str(path))
        module = session.load_module(path.name)
        session.remove(path.name)
        path.unlink()
        return module

    if threads is not None:
        session.get_function("runtime.config_threadpool")(SHARE_ALL_CORES, threads)
    name = str(session.get_function("target.llvm_get_system_cpu")())
    return Machine(name, session.cpu(0), partial(_compiled, isa), load)


def _compiled(isa: Isa, functions: Mapping[str, Any]) -> bytes:
    """A shared library."""
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    target = isa.tvm_target()
    module = tvm.compile(tvm.IRModule(named), target=target, tir_pipeline=tir_pipeline())
    with tempfile.TemporaryDirectory(prefix="lbc-tune-") as folder:
        path = Path(folder) / "kernel.so"
        module.export_library(str(path))
        return path.read_bytes()


def _connect(address: str) -> Any:
    host, _, rest = address.partition(":")
    port, _, key = rest.partition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--rpc {address!r} is not host:port, or host:port:key of a tracker")
    try:
        if key:
            return rpc.connect_tracker(host, int(port)).request(key)
        return rpc.connect(host, int(port))
    except Exception as error:  # TVM's own, under several names
        reason = last_line(error)
        raise ConfigError(
            f"no TVM RPC server answers at {address} ({reason}): start one there with "
            f"python -m tvm.exec.rpc_server --port {port} --port-end {int(port) + 1}"
        ) from None
