"""A candidate's time beside the default's: both take turns, so that a machine whose speed drifts is
fair to both.

With few rows a linear reads its weights once, and finds them in no cache in a model that is larger
than the caches: its operands are flushed before every call. Every candidate must give the default's
bits, or it fails: tuning never changes a result.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm

from lbcompiler.errors import ConfigError, is_interruption, last_line
from lbcompiler.targets.cpu.gemm import SMALL_M
from lbcompiler.tuning.build import Built, Code, Config, build_all
from lbcompiler.tuning.machine import Machine
from lbcompiler.tuning.work import Work

ROUNDS = 11
LOSING, LOSING_ROUNDS = 1.1, 3  # what is that much slower by then is measured no further
VISIT_S = 0.01  # of one visit to code that runs warm
COLD_CALLS = (5, 25)  # of one visit to code that runs cold, each after a flush,
FLUSHED_BYTES = 64 << 20  # which takes longer than the call: as many as flush that much
FLUSH = "cache_flush_cpu_non_first_arg"  # TVM's name of it
SAMPLE_ROWS = 256  # of the weight that is quantized; the rest repeats them


class CandidateError(Exception):
    """A config that cannot be built, run, or gives other bits: a trial that failed."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call, and the median ratio of neighbours: below 1 beats the default."""

    ms: float
    default_ms: float
    ratio: float


class Bench(Protocol):
    """One kernel at one shape, ready to be timed."""

    def build(self, configs: Iterable[Config]) -> None:
        """Compile what was not compiled yet."""

    def compare(self, config: Config) -> Times:
        """Raises CandidateError."""


class ComparingBench(ABC):
    """The `Bench` of a GEMM on a machine, `jobs` compilations at a time; how its results are made
    and timed is the machine's matter. `self.expected`: the default's bits.
    """

    expected: Any
    time_default: Callable[[], float]

    def __init__(self, work: Work, machine: Machine, jobs: int) -> None:
        self.work, self.machine, self.jobs = work, machine, jobs
        self.built: dict[Config, Built] = {}

    def build(self, configs: Iterable[Config]) -> None:
        missing = [config for config in dict.fromkeys(configs) if config not in self.built]
        if missing:
            _, k, n = self.work.shape
            kernel, compiled = self.work.kernel, self.machine.compiled
            found = build_all(compiled, kernel, n, k, missing, self.jobs)
            self.built.update(zip(missing, found, strict=True))

    def compare(self, config: Config) -> Times:
        self.build([config])
        built = self.built[config]
        if isinstance(built, str):
            raise CandidateError(built)
        try:
            return self._compare(built, config)
        except CandidateError:
            raise
        except Exception as error:  # TVM's own, under several names
            if is_interruption(error):
                raise
            self._after_failure(error)
            raise CandidateError(f"{type(error).__name__}: {self._said(error)}") from None

    def _said(self, error: Exception) -> str:
        """The line of an error that says what happened."""
        return last_line(error)

    @abstractmethod
    def _prepared(self, built: Code, config: Config) -> tuple[Any, Callable[[], float]]:
        """(the bits of a candidate's result, its timer: the milliseconds of one call)."""

    @abstractmethod
    def _after_failure(self, failed: Exception) -> None:
        """A candidate failed as nothing that is checked does. Raises ConfigError where no other
        can be measured any more.
        """

    def _compare(self, built: Code, config: Config) -> Times:
        bits, time_candidate = self._prepared(built, config)
        if not np.array_equal(bits, self.expected):
            raise CandidateError("its result has other bits than the default's")
        ours: list[float] = []
        theirs: list[float] = []
        while len(ours) < ROUNDS:
            if len(ours) % 2:
                theirs.append(self.time_default())
                ours.append(time_candidate())
            else:
                ours.append(time_candidate())
                theirs.append(self.time_default())
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            if len(ours) >= LOSING_ROUNDS and ratio > LOSING:
                break
        return Times(statistics.median(ours), statistics.median(theirs), ratio)


class GemmBench(ComparingBench):
    """On a CPU, here or behind TVM RPC."""

    def __init__(self, work: Work, machine: Machine, jobs: int) -> None:
        super().__init__(work, machine, jobs)
        m, _, n = work.shape
        module, self.operands = _operands(work, machine)
        self.default = module["gemm"]
        self.out = self._tensor(np.zeros((m, n), np.float32))
        self.default(*self.operands, self.out)
        self.time_default = self._timer(module, self.out)
        self.expected = self.out.numpy().view(np.int32)

    def _prepared(self, built: Code, config: Config) -> tuple[Any, Callable[[], float]]:
        module = self.machine.load(built)
        out = self._tensor(np.zeros(self.out.shape, np.float32))
        module["gemm"](*self.operands, out)
        return out.numpy().view(np.int32), self._timer(module, out)

    def _after_failure(self, _failed: Exception) -> None:
        """A machine that no longer runs the default fails no candidate."""
        try:
            self.default(*self.operands, self.out)
        except Exception as error:
            raise ConfigError(
                f"the machine that measures no longer answers ({last_line(error)}): what was "
                "measured is kept; start it again and repeat the command"
            ) from None

    def _timer(self, module: Any, out: Any) -> Callable[[], float]:
        """The median milliseconds of one call of the module's GEMM, over one visit."""
        device, operands = self.machine.device, (*self.operands, out)
        if self.work.shape[0] < SMALL_M:
            size = sum(held.numel() * held.dtype.itemsize for held in self.operands)
            calls = min(max(FLUSHED_BYTES // size, COLD_CALLS[0]), COLD_CALLS[1])
            evaluate = module.time_evaluator("gemm", device, 1, calls, f_preproc=FLUSH)
        else:
            once = min(module.time_evaluator("gemm", device, 1, 2)(*operands).results)
            evaluate = module.time_evaluator("gemm", device, max(1, int(VISIT_S / once)), 1)
        return lambda: float(statistics.median(evaluate(*operands).results)) * 1e3

    def _tensor(self, array: Any) -> Any:
        return tvm.runtime.tensor(array, self.machine.device)


def _operands(work: Work, machine: Machine) -> tuple[Any, list[Any]]:
    """The default's module, and what its GEMM takes: quantized activations, packed weights."""
    kernel, (m, k, n) = work.kernel, work.shape
    seed = np.random.default_rng(0)
    functions = {"gemm": kernel.gemm(n, k, bias=False, config=work.default)}
    if kernel.act is not None:
        functions["quantize"] = kernel.quantize(k, kernel.act.default_rule)
    module = machine.load(machine.compiled(functions))

    def tensor(array: Any) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), machine.device)

    activations = [tensor(seed.standard_normal((m, k), np.float32))]
    if kernel.act is not None:
        specs = kernel.quantized_specs(k)
        quantized = [tensor(np.zeros((m, *shape), dtype)) for shape, dtype in specs]
        module["quantize"](*activations, *quantized)
        activations = quantized
    sample = seed.standard_normal((min(n, SAMPLE_ROWS), k), np.float32)
    weight = sample if kernel.weight is None else kernel.weight.quantize(sample)
    parts = zip(kernel.pack(weight), kernel.packed_specs(n, k), strict=True)
    packed = [tensor(np.resize(part, shape)) for part, (shape, _) in parts]
    return module, [*activations, *packed]
