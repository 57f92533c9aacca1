"""Time on a GPU: work that is recorded once and launched again, between two events of its stream.

A kernel of a few microseconds is over before Python has launched the next. So calls are captured as
a CUDA graph, whose launch leaves no gaps but the GPU's own; where that cannot be done, they are
launched one by one, and `is_graph` says so.
"""

import ctypes
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi

from lbcompiler.errors import DeviceError, never_freed
from lbcompiler.targets.cuda.machine import RUNTIME

PATIENCE_S = 60.0  # for what was launched; no work here takes a second
POLL_S = 0.0002
_NOT_READY = 600  # cudaErrorNotReady
_DEVICE_TO_DEVICE = 3  # cudaMemcpyDeviceToDevice
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: what is no launch is done while capturing

Call = Callable[[], Any]


@dataclass(frozen=True)
class Recorded:
    """`launch` puts `calls` calls of `call` into the stream."""

    call: Call  # holds the tensors that a graph knows by their addresses
    launch: Call
    calls: int
    is_graph: bool


def given_back(owner: Any, destroy: Callable[[Any], Any], handle: Any) -> None:
    """A handle of CUDA's is destroyed with its owner, and left to the system where the process
    ends: to destroy it then would wait for a kernel that never does.
    """
    weakref.finalize(owner, destroy, handle).atexit = False


class Clock:
    """A stream of the first GPU and the events on it. One for a process, used by one thread."""

    def __init__(self) -> None:
        self.device = tvm.cuda(0)
        self._cuda = ctypes.CDLL(RUNTIME)
        self._cuda.cudaGetErrorString.restype = ctypes.c_char_p
        self.stream = ctypes.c_void_p()
        self._check(self._cuda.cudaStreamCreate(ctypes.byref(self.stream)), "cudaStreamCreate")
        given_back(self, self._cuda.cudaStreamDestroy, self.stream)
        self._start, self._stop, self._done = (self._event() for _ in range(3))

    @property
    def cold_bytes(self) -> int:
        """More than the L2 cache holds, several times over."""
        return 4 * int(self.device.l2_cache_size_bytes)

    def run(self, call: Call) -> None:
        """Once, until it is done. Raises DeviceError."""
        try:
            with self._on_stream():
                call()
        except Exception as error:
            if self._cuda.cudaStreamQuery(self.stream) not in (0, _NOT_READY):
                never_freed(error)
            raise
        self.wait()

    def record(self, call: Call, calls: int) -> Recorded:
        """`calls` calls, after one to warm up: `call` launches work and does nothing else."""
        self.run(call)
        graph = self._captured(call, calls)
        if graph is None:

            def each() -> None:
                with self._on_stream():
                    for _ in range(calls):
                        call()

            return Recorded(call, each, calls, False)
        start = self._cuda.cudaGraphLaunch
        recorded = Recorded(
            call,
            lambda: self._check(start(graph, self.stream), "cudaGraphLaunch"),
            calls,
            True,
        )
        given_back(recorded, self._cuda.cudaGraphExecDestroy, graph)
        return recorded

    def seconds(self, recorded: Recorded) -> float:
        """Of one call, the mean over those that were recorded. They run twice: the first time
        keeps the GPU busy until the second, which is timed, is in its queue.
        """
        record = self._cuda.cudaEventRecord
        recorded.launch()
        self._check(record(self._start, self.stream), "cudaEventRecord")
        recorded.launch()
        self._check(record(self._stop, self.stream), "cudaEventRecord")
        self.wait()
        ms = ctypes.c_float()
        elapsed = self._cuda.cudaEventElapsedTime(ctypes.byref(ms), self._start, self._stop)
        self._check(elapsed, "cudaEventElapsedTime")
        return float(ms.value) * 1e-3 / recorded.calls

    def copy(self, to: Any, source: Any, size: int) -> None:
        """Bytes of one tensor to another, put into the stream."""
        pointers = ctypes.c_void_p(to.data_ptr()), ctypes.c_void_p(source.data_ptr())
        status = self._cuda.cudaMemcpyAsync(
            *pointers, ctypes.c_size_t(size), _DEVICE_TO_DEVICE, self.stream
        )
        self._check(status, "cudaMemcpyAsync")

    def wait(self) -> None:
        """Until the stream is done. Raises DeviceError, also where that takes too long."""
        self._check(self._cuda.cudaEventRecord(self._done, self.stream), "cudaEventRecord")
        end = time.monotonic() + PATIENCE_S
        while True:
            status = self._cuda.cudaEventQuery(self._done)
            if status != _NOT_READY:
                break
            if time.monotonic() > end:
                raise never_freed(
                    DeviceError(
                        f"a kernel did not end within {PATIENCE_S:.0f} s: this process cannot use "
                        "the GPU any more; end it and start again"
                    )
                )
            time.sleep(POLL_S)
        self._check(status, "what was launched")

    def _captured(self, call: Call, calls: int) -> ctypes.c_void_p | None:
        """A graph of the calls, ready to be launched; None where they cannot be captured."""
        begin = self._cuda.cudaStreamBeginCapture
        if begin(self.stream, _RELAXED):
            self._cuda.cudaGetLastError()  # forgets it
            return None
        graph, ready, failed = ctypes.c_void_p(), ctypes.c_void_p(), False
        try:
            with self._on_stream():
                for _ in range(calls):
                    call()
        except Exception:  # of whatever launches: it will say so again when it is called
            failed = True
        ended = self._cuda.cudaStreamEndCapture(self.stream, ctypes.byref(graph))
        failed = failed or ended != 0 or not graph
        if not failed:
            instantiate = self._cuda.cudaGraphInstantiate
            failed = instantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) != 0
        if graph:
            self._cuda.cudaGraphDestroy(graph)
        if failed:
            self._cuda.cudaGetLastError()
            return None
        return ready

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:0"), self.stream.value or 0):
            yield

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._check(self._cuda.cudaEventCreate(ctypes.byref(event)), "cudaEventCreate")
        given_back(self, self._cuda.cudaEventDestroy, event)
        return event

    def _check(self, status: int, what: str) -> None:
        if status:
            said = self._cuda.cudaGetErrorString(status).decode(errors="replace")
            message = f"the GPU failed in {what}: CUDA error {status} ({said})"
            raise never_freed(DeviceError(message))
