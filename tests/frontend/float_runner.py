"""Run an imported model in float, for comparison with the framework it came from.

Our ops become their plain Relax meaning and TVM's default pipeline compiles the rest: no pass and
no kernel of ours takes part, so a difference is the frontend's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Array, Model, Weight

Feeds = Mapping[str, Array]
SMALL = 1 << 20  # bytes of weights: below, LLVM's optimizing takes longer than it saves


def run_float(model: Model, feeds: Feeds) -> list[Array]:
    """The outputs of `model`, in order, for the inputs by name."""
    return compile_float(model)(feeds)


def compile_float(model: Model) -> Callable[[Feeds], list[Array]]:
    """Compile once, run with several shapes."""
    device = tvm.cpu()
    size = sum(weight.nbytes for weight in model.weights.values())
    target = tvm.target.Target({"kind": "llvm", "opt-level": 3 if size > SMALL else 0})
    machine = relax.VirtualMachine(tvm.compile(plain_relax(model), target=target), device)

    def run(feeds: Feeds) -> list[Array]:
        assert set(feeds) == {port.name for port in model.inputs}
        arrays = [np.ascontiguousarray(feeds[port.name], port.dtype) for port in model.inputs]
        result = machine["main"](*(tvm.runtime.tensor(array, device) for array in arrays))
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        assert len(outputs) == len(model.outputs)
        for output, port in zip(outputs, model.outputs, strict=True):
            assert str(output.dtype) == port.dtype, port
            assert len(output.shape) == len(port.shape), port
            for extent, dim in zip(output.shape, port.shape, strict=True):
                assert isinstance(dim, str) or extent == dim, (output.shape, port)
        return [output.numpy() for output in outputs]

    return run


def plain_relax(model: Model) -> tvm.IRModule:
    """The module with `lbc.weight`, `lbc.dense` and `lbc.conv` written in Relax's own ops."""
    module = model.module
    function = _PlainRelax(module, model.weights).visit_expr(module["main"])
    return tvm.IRModule({**dict(module.functions_items()), module.get_global_var("main"): function})


@relax.expr_functor.mutator
class _PlainRelax(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, weights: Mapping[str, Weight]) -> None:
        super().__init__(module)
        self.weights = weights

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if ops.is_call_to(call, ops.WEIGHT):
            return self.constant(call)
        if ops.is_call_to(call, ops.DENSE):
            return self.dense(*call.args)
        if ops.is_call_to(call, ops.CONV):
            return self.conv(call.attrs, *call.args)
        return call

    def constant(self, call: Any) -> Any:
        weight = self.weights[str(call.attrs["name"])]
        array = np.ascontiguousarray(weight.load())
        assert (array.shape, str(array.dtype)) == (weight.shape, weight.dtype)
        assert list(array.shape) == [int(d) for d in call.attrs["shape"]]
        return relax.const(array, weight.dtype)

    def dense(self, x: Any, w: Any, bias: Any = None) -> Any:
        emit = self.builder_.emit
        y = relax.op.matmul(x, emit(relax.op.permute_dims(w)))
        return y if bias is None else relax.op.add(emit(y), bias)

    def conv(self, attrs: Any, x: Any, w: Any, bias: Any = None) -> Any:
        emit = self.builder_.emit
        spatial = {
            name: [int(v) for v in attrs[name]] for name in ("strides", "padding", "dilation")
        }
        y = relax.op.nn.conv2d(x, w, groups=int(attrs["groups"]), **spatial)
        if bias is None:
            return y
        return relax.op.add(emit(y), emit(relax.op.reshape(bias, [1, -1, 1, 1])))
