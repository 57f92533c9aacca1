"""main(past, ..)          { present = concat((past, rows), axis) .. }          -> (.., present)
->  main(state, .., sizes) { grown = append(state, rows), permute_dims(grown) .. }  -> (.., grown)

What a decoder carries from call to call (keys and values) grows by a few rows and is otherwise the
same, so it stays where it is: `state` is the memory of `past` with `axis` first and with room
behind it, which makes the rows a piece of it and the grown tensor its beginning. How much of it is
past is no longer in its type; it comes in as one shape behind the inputs.

Nothing that is read is ever overwritten: rows go behind the past. What must hold is that nobody
else reads `past` in its old layout, that `present` leaves the model (else it is no state), and that
the caller can tell how much room is needed: a past that is a dynamic dimension of its own, rows
that are a number or a dimension of an input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax, tirx

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model, State
from lbcompiler.ir.rewrite import Scope, bindings, count_uses, rewrite

CONCAT = tvm.ir.Op.get("relax.concat")
PERMUTE = tvm.ir.Op.get("relax.permute_dims")


@dataclass(frozen=True)
class AppendInPlace:
    name: ClassVar[str] = "append_in_place"

    def __call__(self, model: Model) -> Model:
        found = dict(_states(model))
        if not found:
            return model
        pasts = _pasts(found)
        memory = {param: _memory(param, state.axis) for param, state in found.items()}
        appended: dict[Any, Any] = {}  # a grown tensor in the model's order of axes -> in memory

        def visit(call: Any, scope: Scope) -> Any:
            parts = _concatenated(call)
            if parts is None or parts[0] not in memory:
                return None
            past, rows, axis = parts
            order = _axis_first(len(call.ty.shape.values), axis)
            shape = [call.ty.shape.values[i] for i in order]
            rows, order_of_rows = _source(rows, order, scope)
            grown = scope.emit(ops.append(memory[past], rows, shape, axes=order_of_rows))
            present = scope.emit(relax.op.permute_dims(grown, _inverse(order)))
            appended[present] = grown
            return present

        def leave(results: Any, scope: Scope) -> Any:
            fields = scope.value(results)
            if not isinstance(fields, relax.Tuple):
                return appended.get(results, results)
            return relax.Tuple([appended.get(field, field) for field in fields.fields])

        sizes = relax.Var("sizes", relax.ShapeType(list(pasts.values())))
        module = rewrite(model.module, visit, (sizes,), replaced=memory, leave=leave)
        return replace(model, module=module, states=tuple(found.values()))


def _states(model: Model) -> Iterator[tuple[Any, State]]:
    """(parameter, what becomes of it) for every input that a concat of its own makes an output."""
    main = model.module["main"]
    uses, bound = count_uses(main), {binding.var: binding.value for binding in bindings(main)}
    ports = dict(zip(main.params, model.inputs, strict=False))

    def value(expr: Any) -> Any:
        while expr in bound:
            expr = bound[expr]
        return expr

    rows_along: dict[str, int | str] = {}
    results = value(main.body.body)
    fields = list(results.fields) if isinstance(results, relax.Tuple) else [main.body.body]
    for field, port in zip(fields, model.outputs, strict=True):
        parts = _concatenated(value(field))
        if parts is None or parts[0] not in ports or uses[parts[0].name] != 1:
            continue
        past, rows, axis = parts
        size, more = (_dimension(part.ty.shape.values[axis]) for part in (past, rows))
        others = (other.shape for param, other in ports.items() if not param.same_as(past))
        if not isinstance(size, str) or more is None:
            continue  # a fixed past, or rows whose number is computed
        if isinstance(more, str) and not any(more in shape for shape in others):
            continue  # nothing else that is given says how many rows come
        if rows_along.setdefault(size, more) != more:
            continue  # one dimension cannot grow in two ways
        yield past, State(ports[past].name, port.name, axis, size, more)


def _concatenated(expr: Any) -> tuple[Any, Any, int] | None:
    """(first, second, axis) of a concat of two."""
    if not isinstance(expr, relax.Call) or expr.op != CONCAT:
        return None
    parts = expr.args[0]
    if not isinstance(parts, relax.Tuple) or len(parts.fields) != 2:
        return None
    return *parts.fields, int(expr.attrs.axis) % len(expr.ty.shape.values)


def _dimension(extent: Any) -> int | str | None:
    """The number, or the name of the dynamic dimension; None for what is computed of several."""
    if isinstance(extent, tirx.IntImm):
        return int(extent)
    return str(extent.name) if isinstance(extent, tirx.Var) else None


def _pasts(found: dict[Any, State]) -> dict[str, Any]:
    """The dimensions that are past, by name, in the order of the states."""
    return {state.past: param.ty.shape.values[state.axis] for param, state in found.items()}


def _memory(past: Any, axis: int) -> Any:
    """The parameter in place of `past`: the axis first, of a size that only the caller knows."""
    shape = [past.ty.shape.values[i] for i in _axis_first(len(past.ty.shape.values), axis)]
    room = tirx.Var(f"{past.name}_room", "int64")
    return relax.Var(past.name, relax.TensorType([room, *shape[1:]], past.ty.dtype))


def _axis_first(rank: int, axis: int) -> list[int]:
    return [axis, *(i for i in range(rank) if i != axis)]


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _source(rows: Any, order: list[int], scope: Scope) -> tuple[Any, list[int]]:
    """The rows before a permutation that is only for the concat, and the axes to take them in."""
    permuted = scope.value(rows)
    is_permuted = isinstance(permuted, relax.Call) and permuted.op == PERMUTE
    if not is_permuted or permuted.attrs.axes is None:
        return rows, order
    axes = [int(axis) for axis in permuted.attrs.axes]
    return permuted.args[0], [axes[axis] for axis in order]
