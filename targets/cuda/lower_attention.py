"""attention(q, k, v[, mask])  ->  call_tir(attention kernel, q, k, v[, mask])[0]

One kernel for all attentions of a model that differ in nothing but batch and lengths. Heads that
are too long for it stay as they are: `attention.py` makes three kernels of them."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.targets.cpu.attention_operands import Attention
from lbcompiler.targets.cpu.lower_attention import described
from lbcompiler.targets.cuda.attention_fused import attention_kernel, fits
from lbcompiler.targets.cuda.attention_parts import parts_shape
from lbcompiler.targets.lowering import results_of


@dataclass(frozen=True)
class LowerAttention:
    name: ClassVar[str] = "lower_attention"

    def __call__(self, model: Model) -> Model:
        functions: dict[Attention, Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.ATTENTION:
                return None
            what = described(call)
            if what.few:
                what = replace(what, few=None)  # the kernel looks itself
            if not fits(what):
                return None
            if what not in functions:
                functions[what] = scope.builder.add_func(attention_kernel(what), what.name)
            types = [call.ty]
            if what.few is None:
                shape = parts_shape(what, call.ty.shape.values[0])
                types.append(relax.TensorType(list(shape), "float32"))
            return results_of(functions[what], list(call.args), types, scope)[0]

        return replace(model, module=rewrite(model.module, visit))
