"""Schedules for everything that is not a quantized linear.

Each rule takes a function's program and gives a PrimFunc with loops that are parallel and in
vectors, or None, and the next is asked; the last one takes every function.
"""

import logging
from collections.abc import Callable
from typing import Any

from tvm import tirx

from lbcompiler.targets.cpu.schedule.fallback import schedule_fallback
from lbcompiler.targets.cpu.schedule.rows import schedule_rows
from lbcompiler.targets.cpu.schedule.stages import Program, read_program
from lbcompiler.targets.cpu.schedule.stagewise import schedule_stages
from lbcompiler.targets.cpu.schedule.vector_calls import use_vector_math

_log = logging.getLogger(__name__)

Rule = Callable[[Program], Any]
RULES: dict[str, Rule] = {"rows": schedule_rows, "stages": schedule_stages}
FALLBACK = "fallback"
OWN = "own"  # the function brought its schedule


def is_scheduled(function: Any) -> bool:
    return bool(function.attrs and function.attrs.get("tirx.is_scheduled", False))


def lanes_of_target(target: Any) -> int:
    """float32 values in a vector register of an LLVM target."""
    features = str(target)
    if "x86-64-v4" in features or "avx512" in features or "znver4" in features:
        return 16
    return 8 if "x86-64-v3" in features or "avx2" in features else 4


def schedule_function(function: Any, lanes: int) -> tuple[str, Any]:
    """(the rule that took it, the PrimFunc scheduled)."""
    if is_scheduled(function):
        return OWN, function
    program = read_program(function, lanes)
    for name, rule in RULES.items() if program is not None else ():
        scheduled = _tried(name, rule, program)
        if scheduled is not None:
            return name, use_vector_math(scheduled)
    return FALLBACK, use_vector_math(schedule_fallback(function))


def _tried(name: str, rule: Rule, program: Any) -> Any:
    """What the rule makes; a rule that fails costs speed, never the model."""
    try:
        return rule(program)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):  # TVM's are the first
        _log.exception("the rule %s failed; the function runs without it", name)
        return None


def explain(module: Any, target: Any) -> list[tuple[str, str]]:
    """(function, rule) for every PrimFunc of a module that `lower_to_kernels` made."""
    lanes = lanes_of_target(target)
    return [
        (variable.name_hint, schedule_function(function, lanes)[0])
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    ]


def schedule_module(module: Any, target: Any) -> Any:
    """The module with every PrimFunc scheduled."""
    lanes = lanes_of_target(target)
    scheduled = module.clone()
    for variable, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        rule, function = schedule_function(function, lanes)
        _log.debug("%s: %s", variable.name_hint, rule)
        scheduled.update_func(variable, function)
    return tirx.transform.ConvertSSA()(scheduled)
