"""Errors that are the user's to mend: one paragraph with the place, the value and the way out; and
what is only to be known."""

import ctypes
from typing import TypeVar

Held = TypeVar("Held")


class LbcError(Exception):
    """The base: the CLI prints it without a traceback and exits with code 2."""


class ModelError(LbcError):
    """The model file cannot be read or holds what cannot be compiled."""


class ConfigError(LbcError):
    """What was asked for is not possible: a format, rule, pattern, shape or combination."""


class ArtifactError(LbcError):
    """An artifact is truncated, altered, of another schema, or of another machine."""


class InputError(LbcError):
    """A run-time input has the wrong name, dtype or shape."""


class DeviceError(LbcError):
    """The GPU, its driver or its memory does not do what a program needs."""


class LbcWarning(UserWarning):
    """What a user should know of what is done all the same: the CLI prints it on stderr."""


def is_interruption(error: BaseException) -> bool:
    """Whether it is Ctrl-C, which TVM's calls may turn into a RuntimeError without words."""
    if isinstance(error, RuntimeError):
        return not str(error).strip()
    return isinstance(error, KeyboardInterrupt)


def never_freed(held: Held) -> Held:
    """The same, and what it holds: an error holds what the functions it went through held.

    A GPU that failed refuses everything, the freeing of memory as well. TVM throws that out of a
    destructor, which ends the process without a word: so tensors and code have to outlive it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    return held


def last_line(error: BaseException) -> str:
    """Where TVM and linkers say what was wrong; the error's class where it has no words."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def reason_of(error: Exception) -> str:
    """A line of what another library raised, in its own words and classes."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
