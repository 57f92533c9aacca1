"""The targets, by name: `cpu`, `cpu:avx2`, `cuda:sm_80,sm_90a`. One folder and one line each, and
a file `on_NAME.py` in each package that treats targets differently: `bench`, `tuning`.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.target import Target

Make = Callable[[str, Sequence[Any]], tuple[Target, ...]]

TARGETS = ("cpu", "cuda")  # a folder with a function of its name, which is loaded when it is asked


def targets_named(text: str, results: Sequence[Any] = ()) -> tuple[Target, ...]:
    """`name[:variant]` -> a Target for each program of the artifact, its configs from `results`
    (`lbcompiler.tuning`) first.

    Raises ConfigError that lists the names.
    """
    name, variant = parts_of(text)
    make: Make = getattr(import_module(f"{__name__}.{name}"), name)
    return make(variant, results)


def parts_of(text: str) -> tuple[str, str]:
    """`name[:variant]` -> both, the name one of TARGETS. Raises ConfigError that lists them."""
    name, _, variant = text.partition(":")
    if name not in TARGETS:
        raise ConfigError(
            f"unknown target {text!r}: choose one of {', '.join(TARGETS)}, e.g. cpu, cpu:avx2 or "
            "cuda:sm_90a"
        )
    return name, variant


def side_of(package: str, name: str) -> Any:
    """The module `on_NAME` of a package outside of this one: what it needs of a target."""
    return import_module(f"{package}.on_{name}")
