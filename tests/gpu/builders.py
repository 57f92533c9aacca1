"""The processes that build the checks of a plan: beside the one that runs them, or before, on
another machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.gpu.builder import FAILED, folder_of, is_built
from tests.gpu.check import Check
from tests.gpu.kernels import AgainstEmulator
from tests.gpu.plan import Options, plan
from tests.targets.cuda.fake_nvcc import ROOT

MOST_BUILDERS = 8
POLL_S = 1.0
Builders = Sequence["subprocess.Popen[bytes]"]


@contextmanager
def builders_of(options: Options, built: Path | None) -> Iterator[tuple[Path, Builders]]:
    """(where checks are built, by which processes): by none where they were `built` before."""
    if built is not None:
        yield built, ()
        return
    with (
        tempfile.TemporaryDirectory(prefix="lbc-gpu-") as name,
        builders(Path(name), options) as processes,
    ):
        yield Path(name), processes


@contextmanager
def builders(folder: Path, options: Options) -> Iterator[Builders]:
    """Each compiles kernels on several cores. They are ended with what they started."""
    if any(isinstance(check, AgainstEmulator) for check in plan(options)):
        from tests.targets.cuda.fake_gpu import fake_cuda

        with suppress(RuntimeError, OSError, StopIteration):  # each check says so by itself
            fake_cuda()  # once for all of them
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "tests.gpu.builder", str(folder), options.to_json()]
    processes = [
        subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
        for _ in range(max(1, min(MOST_BUILDERS, cores // 2)))
    ]
    try:
        yield processes
    finally:
        for process in processes:
            end(process)


def build_all(
    folder: Path, options: Options, told: Callable[[int, int], None]
) -> dict[str, str | None]:
    """Of each library the reason why it cannot be built, None of one that is; `told` how many of
    how many are done.
    """
    checks = plan(options)
    folders = {folder_of(folder, check): check.name for check in checks}
    with builders(folder, options) as processes:
        done, is_over = 0, False
        while not is_over:
            is_over = all(process.poll() is not None for process in processes)
            before, done = done, sum(map(is_built, folders))
            if done > before:
                told(done, len(folders))
            if not is_over:
                time.sleep(POLL_S)
    bury(processes, folder, checks)
    return {
        name: (place / FAILED).read_text() if (place / FAILED).exists() else None
        for place, name in folders.items()
    }


def bury(processes: Builders, folder: Path, checks: Sequence[Check]) -> None:
    """Where no builder is left of several, what none has built never will be."""
    if not processes or any(process.poll() is None for process in processes):
        return
    for held in {folder_of(folder, check) for check in checks}:
        if not is_built(held):
            held.mkdir(exist_ok=True)
            (held / FAILED).write_text("the process that built it died")


def end(process: "subprocess.Popen[Any]") -> None:
    """A process that we started, and what it started: it leads a session of its own."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    process.wait()
