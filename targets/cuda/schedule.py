"""Threads for everything that is not written with them: TVM's dlight rules where they are good.

A rule is tried after the other; the last takes every function with data-parallel loops. What none
takes (a scan, a sort: one loop whose steps follow each other) runs its outer loops on threads and
the rest of it in each.
"""

import logging
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight

from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.codegen import is_schedulable

_FAILURES = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)  # TVM's: the first

_log = logging.getLogger(__name__)

RULES = (
    dlight.gpu.Matmul,
    dlight.gpu.GEMV,
    dlight.gpu.Reduction,
    dlight.gpu.GeneralReduction,
    dlight.gpu.Fallback,
)


def schedule_module(module: Any, arch: Arch) -> Any:
    """The module with every schedulable PrimFunc on threads."""
    scheduled = module.clone()
    target = arch.schedule_target
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and needs_schedule(function):
            scheduled.update_func(variable, schedule_function(function, target))
    return scheduled


def schedule_function(function: Any, target: Any) -> Any:
    """The PrimFunc on threads, by the first rule that takes it."""
    for rule in RULES:
        try:
            with target:
                module = dlight.ApplyDefaultSchedule(rule())(tvm.IRModule({"main": function}))
        except _FAILURES:
            _log.exception("the rule %s failed; the next is tried", rule.__name__)
            continue
        if not needs_schedule(module["main"]):
            return module["main"]
    return function


def needs_schedule(function: Any) -> bool:
    """Whether a PrimFunc has blocks and no threads yet."""
    if not is_schedulable(function) or function.attrs.get("tirx.is_scheduled", False):
        return False
    return isinstance(function.body, s_tir.SBlockRealize)
