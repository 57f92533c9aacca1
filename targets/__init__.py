"""The targets, by name: `cpu`, `cpu:avx2`. One folder and one line each."""

from collections.abc import Callable, Sequence
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.target import Target
from lbcompiler.targets.cpu import cpu

TARGETS: dict[str, Callable[[str, Sequence[Any]], Target]] = {
    "cpu": cpu
}  # name -> (variant, "" for the host's; results of tuning) -> Target


def target_named(text: str, results: Sequence[Any] = ()) -> Target:
    """`name[:variant]` -> Target, its configs from `results` (`lbcompiler.tuning`) first.

    Raises ConfigError that lists the names.
    """
    name, _, variant = text.partition(":")
    if name not in TARGETS:
        raise ConfigError(
            f"unknown target {text!r}: choose one of {', '.join(TARGETS)}, e.g. cpu or cpu:avx2"
        )
    return TARGETS[name](variant, results)
