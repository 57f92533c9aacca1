"""Sorts and scans along one axis: TVM's kernels for GPUs, whose threads work together."""

from typing import Any

from tvm import relax, topi

from lbcompiler.targets.cpu.legalization import Builder, Legalization


def accumulate(is_sum: bool) -> Legalization:
    """cumsum, cumprod."""

    def legalize(builder: Builder, call: Any) -> Any:
        x, axis = call.args[0], call.attrs.axis
        if axis is None:
            x, axis = builder.emit(relax.op.reshape(x, call.ty.shape)), 0
        return builder.call_te(
            topi.gpu.cumsum if is_sum else topi.gpu.cumprod,
            x,
            int(axis) % len(call.ty.shape.values),
            dtype=str(call.ty.dtype),
            exclusive=bool(call.attrs.exclusive),
            primfunc_name_hint="cumsum" if is_sum else "cumprod",
        )

    return legalize


def sort(builder: Builder, call: Any) -> Any:
    return builder.call_te(
        topi.gpu.sort, call.args[0], int(call.attrs.axis), not call.attrs.descending
    )


def argsort(builder: Builder, call: Any) -> Any:
    return builder.call_te(
        topi.gpu.argsort,
        call.args[0],
        axis=int(call.attrs.axis),
        is_ascend=not call.attrs.descending,
        dtype=str(call.attrs.dtype),
    )


def topk(builder: Builder, call: Any) -> Any:
    return builder.call_te(
        topi.gpu.topk,
        call.args[0],
        k=int(call.attrs.k),
        axis=int(call.attrs.axis),
        ret_type=str(call.attrs.ret_type),
        is_ascend=not call.attrs.largest,
        dtype=str(call.attrs.dtype),
    )
