"""The checks of a plan, built by several processes and run by one after the other, until all are
done or the time is over.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.builder import folder_of, is_built
from tests.gpu.builders import Builders, builders_of, bury, end
from tests.gpu.check import CRASHED, FAILED, SKIPPED, Check, Record, family_of
from tests.gpu.plan import Options, plan
from tests.gpu.worker import MARK
from tests.targets.cuda.fake_nvcc import ROOT

KERNEL_S = 20.0  # for a check of a kernel: all it launches takes the GPU milliseconds
PATIENCE_S = 150.0  # for any other: the longest waits for a model's outputs; an emulated GPU's too
MOST_HANGS = 2  # of a family, after which its other checks are left out
OVER = "the time was over"
TAIL = 6  # lines of what a process said before it died

Told = Callable[[Record], None]
_GONE: dict[str, Any] = {"gone": True}


def run_all(
    options: Options, seconds: float, told: Told, built: Path | None = None
) -> list[Record]:
    """A record for each check, told as it comes. `built`: where they were built before."""
    checks, limit = plan(options), time.monotonic() + seconds
    records: dict[int, Record] = {}
    hangs: Counter[str] = Counter()

    def keep(index: int, record: Record) -> None:
        records[index] = record
        told(record)

    for index, check in enumerate(checks):
        if built is not None and not is_built(folder_of(built, check)):
            keep(index, Record(check.name, FAILED, 0, f"not built: it is not in {built}"))
    with builders_of(options, built) as (folder, processes):
        while time.monotonic() < limit:
            left = [index for index in range(len(checks)) if index not in records]
            if not left:
                break
            hung = _run_some(folder, options, processes, left, limit, keep)
            if hung is not None:
                hangs[family_of(hung)] += 1
                _leave_out(hangs, checks, left, records, keep)
    for index, check in enumerate(checks):
        if index not in records:
            keep(index, Record(check.name, SKIPPED, 0, OVER))
    return [records[index] for index in range(len(checks))]


def _leave_out(
    hangs: Counter[str],
    checks: list[Check],
    left: list[int],
    records: dict[int, Record],
    keep: Callable[[int, Record], None],
) -> None:
    """What launches code that hung before."""
    for index in left:
        family = family_of(checks[index])
        if index not in records and hangs[family] >= MOST_HANGS:
            reason = f"{hangs[family]} other checks of {family} did not end"
            keep(index, Record(checks[index].name, SKIPPED, 0, reason))


@dataclass
class _Worker:
    """A process, and what it says."""

    process: subprocess.Popen[str]
    said: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)
    tail: list[str] = field(default_factory=list)

    def listen(self) -> None:
        readers = [
            threading.Thread(target=self._messages, daemon=True),
            threading.Thread(target=self._errors, daemon=True),
        ]
        for reader in readers:
            reader.start()

    def _messages(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                self.said.put(json.loads(line[len(MARK) :]))
        self.said.put(_GONE)

    def _errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.tail = [*self.tail, line.strip()][-TAIL:]


def _run_some(
    folder: Path,
    options: Options,
    processes: Builders,
    indices: list[int],
    limit: float,
    keep: Callable[[int, Record], None],
) -> Check | None:
    """As many as one process runs: all, unless it dies, hangs, or the time is over. The check that
    hung, if one did.
    """
    command = [sys.executable, "-m", "tests.gpu.worker", str(folder), options.to_json()]
    process = subprocess.Popen(
        [*command, *map(str, indices)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    worker = _Worker(process)
    worker.listen()
    checks = plan(options)
    begun: int | None = None
    has_spoken, since = False, time.monotonic()
    try:
        while time.monotonic() < limit:
            try:
                message = worker.said.get(timeout=0.2)
            except queue.Empty:
                bury(processes, folder, checks)
                patience = 0.0 if begun is None else _patience(checks[begun], options)
                if begun is not None and time.monotonic() > since + patience:
                    reason = f"it did not end within {patience:.0f} s"
                    keep(begun, Record(checks[begun].name, CRASHED, patience, reason))
                    return checks[begun]
                continue
            if message is _GONE:
                silent = [] if has_spoken else indices
                _account(worker, begun, silent, checks, keep)
                return None
            has_spoken = True
            if "begin" in message:
                begun, since = message["begin"], time.monotonic()
                continue
            begun = None
            keep(message["index"], Record(**message["record"]))
        if begun is not None:
            keep(begun, Record(checks[begun].name, SKIPPED, 0, f"{OVER} while it ran"))
        return None
    finally:
        end(process)


def _patience(check: Check, options: Options) -> float:
    return KERNEL_S if hasattr(check, "of") and not options.is_small else PATIENCE_S


def _account(
    worker: _Worker,
    begun: int | None,
    silent: list[int],
    checks: list[Any],
    keep: Callable[[int, Record], None],
) -> None:
    """For a process that is no more: the check it died in; all of its checks (`silent`) where it
    never came to any.
    """
    status = worker.process.wait()
    reason = f"the process ended with {status}: {' | '.join(worker.tail)}"
    if begun is not None:
        keep(begun, Record(checks[begun].name, CRASHED, 0, reason))
    elif status:
        for index in silent:
            keep(index, Record(checks[index].name, CRASHED, 0, reason))
