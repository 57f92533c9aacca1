"""What a failing verb says: one paragraph on stderr, an exit code, and a traceback only on demand.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a fault of lbcompiler itself; the message asks for a report |
| 2 | the user's to mend: wrong options, a bad model, a full disk |
| 130, 143 | interrupted (Ctrl-C), terminated; nothing is half-written |

With `--json` the error is also the one JSON object on stdout: `{"error": {"kind", "message"}}`.
"""

import os
import sys
import threading
import traceback
import warnings
from typing import Any, TextIO

import typer
from typer.core import TyperCommand

from lbcompiler.errors import LbcError, LbcWarning

FAULT, USER, INTERRUPTED, TERMINATED = 1, 2, 130, 143

interrupted = threading.Event()  # by Ctrl-C, which TVM may raise as a RuntimeError without words
SIGNAL_S = 1.0  # that a signal may take to be seen, on a machine that is busy


def end_if_interrupted() -> None:
    """Raises KeyboardInterrupt after a Ctrl-C."""
    if interrupted.is_set():
        raise KeyboardInterrupt


class Verb(TyperCommand):
    """A command that turns what it raises into a message; wrong usage is left to Typer."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Typer's own class
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    if not _is_debugging(ctx):
                        warnings.simplefilter("ignore")  # of libraries, about their own code
                    warnings.simplefilter("always", LbcWarning)
                warnings.showwarning = _shown
                result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
            return result
        except (typer.Exit, BrokenPipeError):
            raise  # Typer ends a closed pipe in silence
        except KeyboardInterrupt:
            raise self._failed(ctx, "Interrupted", "interrupted", INTERRUPTED) from None
        except LbcError as error:
            raise self._failed(ctx, type(error).__name__, str(error), USER) from None
        except OSError as error:
            raise self._failed(ctx, "OSError", _said_by_system(error), USER) from None
        except MemoryError:
            raise self._failed(ctx, "MemoryError", "there is not enough memory", USER) from None
        except Exception as error:
            if interrupted.wait(SIGNAL_S):
                raise self._failed(ctx, "Interrupted", "interrupted", INTERRUPTED) from None
            message = (
                f"lbc {ctx.info_name} failed in a way it should not "
                f"({type(error).__name__}: {_first_line(error)}). Please report it with the "
                f"traceback that `lbc --debug {ctx.info_name} ...` shows"
            )
            raise self._failed(ctx, "InternalError", message, FAULT) from None

    def _failed(self, ctx: typer.Context, kind: str, message: str, code: int) -> typer.Exit:
        """Say it; call it while the exception is being handled."""
        if _is_debugging(ctx):
            traceback.print_exc()
        paragraph = " ".join(message.split())
        try:
            if ctx.params.get("as_json"):
                from lbcompiler.cli_show import print_json

                print_json({"error": {"kind": kind, "message": paragraph}})
            sys.stdout.flush()
        except OSError:
            _drop_stdout()
        print(f"error: {paragraph}", file=sys.stderr)
        return typer.Exit(code)


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours without its place, which says nothing to a user."""
    text = f"warning: {message}\n"
    if not issubclass(category, LbcWarning):
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _drop_stdout() -> None:
    """What it cannot write is lost: the interpreter would try again at its end, and leave with its
    own code.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _is_debugging(ctx: typer.Context) -> bool:
    return bool(ctx.find_root().params.get("debug"))


def _said_by_system(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return f"the system refused{where}: {error.strerror or error}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
