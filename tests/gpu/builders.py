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
def begun(options: Options, built: Path | None) -> Iterator[tuple[Path, Builders]]:
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


def build_all(folder: Path, options: Options, told: Callable[[int, int], None]) -> dict[str, str]:
    """Of each check that cannot be built the reason; `told` how many of how many folders are."""
    checks = plan(options)
    folders = {folder_of(folder, check): check.name for check in checks}
    with builders(folder, options) as processes:
        done = 0
        while any(process.poll() is None for process in processes):
            before, done = done, sum(map(is_built, folders))
            if done > before:
                told(done, len(folders))
            time.sleep(POLL_S)
    bury(processes, folder, checks)
    return {
        name: (place / FAILED).read_text()
        for place, name in folders.items()
        if (place / FAILED).exists()
    }


def bury(processes: Builders, folder: Path, checks: Sequence[Check]) -> None:
    """Where no builder is left, what none has built never will be."""
    if any(process.poll() is None for process in processes):
        return
    for held in {folder_of(folder, check) for check in checks}:
        if not is_built(held):
            held.mkdir(exist_ok=True)
            reason = "the process that built it died" if processes else "it is not in the folder"
            (held / FAILED).write_text(reason)


def end(process: "subprocess.Popen[Any]") -> None:
    """A process that we started, and what it started: it leads a session of its own."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
    process.wait()
