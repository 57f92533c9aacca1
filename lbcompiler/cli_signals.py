"""Ctrl-C and SIGTERM end `lbc` soon, whatever it is doing.

Python runs its signal handlers between two of its own instructions, and a compiler may stay for
minutes in one call of C++. So a thread is woken by the signal itself; when the main thread has not
unwound after a while, or at a second signal, it removes what is half-written and ends the process.

A KeyboardInterrupt may also be lost: one that is raised within a finalizer can only be reported,
and a library's C++ may make another error of it. So the signal is remembered
(`cli_errors.interrupted`), and whoever reports progress asks for it.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lbcompiler.cli_errors import INTERRUPTED, TERMINATED, interrupted
from lbcompiler.files import remove_unfinished

GRACE_S = 10.0  # to unwind: enough to remove gigabytes, and for a kernel to be compiled to its end
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


def end_on_signals() -> None:
    """To be called once, by the main thread of a process that is `lbc` and nothing else."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _in_finalizer
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_grace, args=(reader,), daemon=True).start()


@contextmanager
def exit_of_interruption() -> Iterator[None]:
    """Leave with code 130 what has unwound from Ctrl-C.

    CPython remembers a KeyboardInterrupt that passed through `exec` of a string (every dataclass is
    made by one) and kills the process by SIGINT at its end, whatever code it was given.
    """
    try:
        yield
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise


def _in_finalizer(report: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C there is no news; anything else is."""
    if report.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(report)


def _terminated(_number: int, _frame: object) -> None:
    """Unwind, as Python does by itself on Ctrl-C."""
    sys.exit(TERMINATED)


def _end_after_grace(reader: int) -> None:
    code = None
    while code is None:
        code = CODES.get(signal.Signals(os.read(reader, 1)[0]))
    if code == INTERRUPTED:
        interrupted.set()
    select.select([reader], [], [], GRACE_S)
    remove_unfinished()
    if code == INTERRUPTED:
        os.write(2, b"error: interrupted\n")
    os._exit(code)
