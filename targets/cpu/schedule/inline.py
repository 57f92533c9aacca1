"""Stages that need no loop of their own, written into the stages that read them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    calls_in,
    guarded_loads,
    is_zero,
    loads_in,
    map_loads,
    op_name,
    same,
    substitute,
    variables_in,
)
from lbcompiler.targets.cpu.schedule.guards import pads_product
from lbcompiler.targets.cpu.schedule.stages import Program, Stage

_COSTLY = {"exp", "exp2", "exp10", "log", "log2", "log10", "log1p", "erf", "tanh", "sigmoid"}
_CALLS = 16  # in an expression that is written out for several readers: LLVM finds them equal
_COSTLY |= {"pow", "sin", "cos", "tan", "atan"}


def is_costly(value: Expr) -> bool:
    """Whether computing it twice costs more than storing it once."""
    return any(op_name(call) in _COSTLY for call in calls_in(value))


def is_guarded(value: Expr) -> bool:
    """Whether it branches, as padding and concatenation do."""
    return any(op_name(call) == "if_then_else" for call in calls_in(value))


def is_trivial(value: Expr) -> bool:
    return isinstance(value, TensorLoad | tirx.IntImm | tirx.FloatImm | tirx.Var)


def _repeats(stage: Stage, load: Expr) -> bool:
    """Whether the stage reads one element of the buffer at several points of its box."""
    used: set[Any] = set()
    for index in load.indices:
        used |= variables_in(index)
    axes = {axis.var for axis in (*stage.axes, *stage.reduced)}
    window = any(len(variables_in(index) & axes) > 1 for index in load.indices)
    return window or not axes <= used


def _is_transpose(stage: Stage) -> bool:
    """Whether it reads along another axis than it writes, so that each element is a cache line."""
    if not isinstance(stage.value, TensorLoad) or not stage.axes:
        return False
    last = stage.value.indices[-1]
    return isinstance(last, tirx.Var) and not last.same_as(stage.axes[-1].var)


def needs_storage(producer: Stage, readers: Sequence[Stage]) -> bool:
    """Whether an injective stage is better computed once into memory than at each reader."""
    loads = [
        (reader, load)
        for reader in readers
        for load in loads_in(reader.value)
        if load.source.same_as(producer.buffer)
    ]
    repeated = any(_repeats(reader, load) for reader, load in loads)
    if is_trivial(producer.value):
        return repeated and _is_transpose(producer)
    if repeated and is_guarded(producer.value):
        return not (len(loads) == 1 and pads_product(producer, *loads[0]))
    if any(reader.reduced and _repeats(reader, load) for reader, load in loads):
        return True
    if len(readers) > 1 and len(calls_in(producer.value)) > _CALLS:
        return True
    is_summed = any(reader.reduced for reader in readers) and len(readers) > 1
    return is_costly(producer.value) and (repeated or is_summed)


def _shared(value: Expr, loads: list[Expr]) -> bool:
    """Whether equal loads stand more than once and always execute."""
    return len(loads) > 1 and not any(same(loads[0], load) for load in guarded_loads(value))


def inlined(value: Expr, producers: dict[Any, Stage]) -> Expr:
    """The value with each load of a producer replaced by what the producer computes there."""
    groups: list[list[Expr]] = []
    for load in loads_in(value):
        if load.source not in producers:
            continue
        group = next((g for g in groups if same(g[0], load)), None)
        if group is None:
            groups.append([load])
        else:
            group.append(load)
    bound: list[tuple[Expr, Any, Expr]] = []  # load, variable, value
    for group in groups:
        computed = producers[group[0].source].at(group[0].indices)
        if not is_trivial(computed) and _shared(value, group):
            variable = tirx.Var(f"{group[0].source.name}_value", computed.ty)
            bound.append((group[0], variable, computed))

    def replacement(load: Expr) -> Expr:
        if load.source not in producers:
            return load
        for known, variable, _ in bound:
            if same(known, load):
                return variable
        return producers[load.source].at(load.indices)

    value = map_loads(value, replacement)
    for _, variable, computed in reversed(bound):
        value = tirx.Let(variable, computed, value)
    return value


def inline_stages(program: Program, keep: Any = needs_storage) -> Program:
    """The program without the stages that their readers can compute on the way."""
    producers: dict[Any, Stage] = {}
    kept: list[Stage] = []
    for stage in program.stages:
        stage = replace(stage, value=inlined(stage.value, producers))
        is_output = stage.buffer in program.outputs
        readers = program.readers(stage.buffer)
        if stage.reduced or is_output or stage.combine or keep(stage, readers):
            kept.append(stage)
        else:
            producers[stage.buffer] = stage
    return program.with_stages(kept)


def fuse_finish(program: Program) -> Program:
    """Each reduction together with the one elementwise stage that reads its result, where there is
    one.
    """
    stages = list(program.stages)
    for reduction in program.stages:
        if not reduction.reduced or reduction.buffer in program.outputs:
            continue
        readers = program.with_stages(stages).readers(reduction.buffer)
        if len(readers) != 1 or readers[0].reduced:
            continue
        fused = _fused(reduction, readers[0])
        if fused is not None:
            stages[stages.index(readers[0])] = fused
            stages.remove(reduction)
    return program.with_stages(stages)


def _fused(reduction: Stage, reader: Stage) -> Stage | None:
    loads = [load for load in loads_in(reader.value) if load.source.same_as(reduction.buffer)]
    own = [index for index in loads[0].indices if isinstance(index, tirx.Var)]
    if any(not is_zero(i) for i in loads[0].indices if not isinstance(i, tirx.Var)):
        return None
    if any(
        not same(a, b)
        for load in loads
        for a, b in zip(load.indices, loads[0].indices, strict=True)
    ):
        return None
    if len(own) != len(reader.axes) or len(own) != len(reduction.axes):
        return None
    if any(not index.same_as(axis.var) for index, axis in zip(own, reader.axes, strict=True)):
        return None
    result = tirx.Var(f"{reduction.buffer.name}_result", reduction.value.ty)
    swap = {a.var: b.var for a, b in zip(reader.axes, reduction.axes, strict=True)}
    finish = map_loads(
        reader.value, lambda load: result if load.source.same_as(reduction.buffer) else load
    )
    return replace(
        reduction,
        buffer=reader.buffer,
        indices=tuple(substitute(index, swap) for index in reader.indices),
        result=result,
        finish=substitute(finish, swap),
    )
