"""How ops along one axis become PrimFuncs: extremes, scans, sorts and slices."""

from typing import Any

from tvm import relax, te, tirx, topi

from lbcompiler.targets.cpu.legalization import Builder, Legalization, default
from lbcompiler.targets.cpu.scan import scan
from lbcompiler.targets.cpu.schedule.expressions import Expr


def argument(is_max: bool) -> Legalization:
    """argmax or argmin as two plain reductions: the extreme, then the first index that has it."""

    def legalize(builder: Builder, call: Any) -> Any:
        x = call.args[0]
        if call.attrs.axis is None:
            return default(call)(builder, call)
        rank = len(x.ty.shape.values)
        axis = int(call.attrs.axis) % rank
        keep = bool(call.attrs.keepdims)
        out_dtype = str(call.ty.dtype)

        def extreme_index(x: Any) -> Any:
            extreme = (topi.max if is_max else topi.min)(x, axis=axis, keepdims=False)
            k = te.reduce_axis((0, x.shape[axis]), "k")
            extent = tirx.Cast(out_dtype, x.shape[axis])

            def first(*at: Expr) -> Expr:
                rest = [*at[:axis], *at[axis + (1 if keep else 0) :]]
                element = x[(*rest[:axis], k, *rest[axis:])]
                index = tirx.Cast(out_dtype, k.var)
                here = tirx.Select(element == extreme[tuple(rest)], index, extent)
                return te.min(here, axis=[k])

            shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
            found = te.compute(shape, first, name="first")
            last = extent - tirx.const(1, out_dtype)  # all NaN: some index that exists
            return te.compute(shape, lambda *at: tirx.min(found(*at), last), name="index")

        name = "argmax" if is_max else "argmin"
        return builder.call_te(extreme_index, x, primfunc_name_hint=name)

    return legalize


def accumulate(is_sum: bool) -> Legalization:
    """cumsum, cumprod: a loop over one axis, in parallel over the others."""

    def legalize(builder: Builder, call: Any) -> Any:
        x = call.args[0]
        axis = None if call.attrs.axis is None else int(call.attrs.axis)
        exclusive = bool(call.attrs.exclusive)
        dtype = str(call.ty.dtype)
        if axis is None:
            x = builder.emit(relax.op.reshape(x, call.ty.shape))
            axis = 0
        axis %= len(call.ty.shape.values)
        name = "cumsum" if is_sum else "cumprod"
        return builder.call_te(
            lambda x: scan(x, axis, dtype, is_sum, exclusive), x, primfunc_name_hint=name
        )

    return legalize


def strided_slice(builder: Builder, call: Any) -> Any:
    """With negative axes counted from the end, which TVM's own does not understand."""
    if not isinstance(call.args[1], relax.Tuple):
        return default(call)(builder, call)
    rank = len(call.args[0].ty.shape.values)
    axes = [tirx.IntImm("int64", int(axis) % rank) for axis in call.args[1].fields]
    args = [call.args[0], relax.Tuple(axes), *call.args[2:]]
    return default(call)(builder, relax.Call(call.op, args, call.attrs, call.ty_args))


def sort(builder: Builder, call: Any) -> Any:
    return builder.call_te(topi.sort, call.args[0], call.attrs.axis, not call.attrs.descending)


def argsort(builder: Builder, call: Any) -> Any:
    return builder.call_te(
        topi.argsort,
        call.args[0],
        axis=call.attrs.axis,
        is_ascend=not call.attrs.descending,
        dtype=str(call.attrs.dtype),
    )


def topk(builder: Builder, call: Any) -> Any:
    return builder.call_te(
        topi.topk,
        call.args[0],
        k=int(call.attrs.k),
        axis=call.attrs.axis,
        ret_type=str(call.attrs.ret_type),
        is_ascend=not call.attrs.largest,
        dtype=str(call.attrs.dtype),
    )
