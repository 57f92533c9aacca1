"""A candidate's time on a GPU beside the default's: graphs of calls, in turn.

With few rows every call reads another copy of the weights, of as many as the L2 cache does not
hold. A config may add up K in another order, so bits are compared on operands whose sums are exact:
whole numbers, of one size in every block, so that all blocks have the same scale.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from lbcompiler.errors import ConfigError, last_line, never_freed
from lbcompiler.targets.cuda.bench import (
    FEW_ROWS,
    Linear,
    copies_for,
    exact_rows,
    functions_of,
    packed_weights,
    quantized_rows,
    results_for,
    visit,
)
from lbcompiler.targets.cuda.clock import Clock, Recorded
from lbcompiler.tuning.build import Code, Config
from lbcompiler.tuning.machine import Machine
from lbcompiler.tuning.measure import ComparingBench
from lbcompiler.tuning.work import Work


class GpuBench(ComparingBench):
    """The `Bench` of a GEMM on the GPU of this machine."""

    def __init__(self, clock: Clock, work: Work, machine: Machine, jobs: int) -> None:
        super().__init__(work, machine, jobs)
        self.clock = clock
        self.reason = ""  # why nothing runs any more
        m, k, n = work.shape
        kernel, rng = work.kernel, np.random.default_rng(0)
        module = machine.load(machine.compiled(functions_of(kernel, n, k, work.default)))
        linear = Linear(kernel, m, k, n, module, clock)
        self.exact = [*quantized_rows(linear, exact_rows(m, k)), *packed_weights(linear, None)]
        self.rows = quantized_rows(linear, rng.standard_normal((m, k), np.float32))
        cold = clock.cold_bytes if m <= FEW_ROWS else 0
        self.copies = copies_for(packed_weights(linear, rng), cold)
        self.results = results_for(kernel, m, n, work.default)
        self.default = module["gemm"]
        self.expected, self.time_default = self._of(module, work.default)

    def compare(self, config: Config) -> Any:
        if self.reason:
            raise ConfigError(
                f"the GPU no longer runs what it ran ({self.reason}): what was measured is kept; "
                "repeat the command"
            )
        return super().compare(config)

    def _prepared(self, built: Code, config: Config) -> tuple[Any, Callable[[], float]]:
        return self._of(self.machine.load(built), config)

    def _of(self, module: Any, config: Config) -> tuple[Any, Callable[[], float]]:
        m, _, n = self.work.shape
        results, gemm = results_for(self.work.kernel, m, n, config), module["gemm"]
        self.clock.run(lambda: gemm(*self.exact, *results))
        bits = results[0].numpy().view(np.int32)
        turns = cycle(self.copies)
        recorded: Recorded = visit(
            self.clock, lambda: gemm(*self.rows, *next(turns), *results), len(self.copies)
        )
        return bits, lambda: self.clock.seconds(recorded) * 1e3

    def _after_failure(self, failed: Exception) -> None:
        """The candidate is to blame for what it did to the GPU; the next one ends the search."""
        try:
            self.clock.run(lambda: self.default(*self.exact, *self.results))
        except Exception as error:  # TVM's own, under several names
            self.reason = self._said(error)
            never_freed((self, failed, error))

    def _said(self, error: Exception) -> str:
        lines = str(error).strip().splitlines()
        return next((line.strip() for line in lines if "CUDA" in line), last_line(error))
