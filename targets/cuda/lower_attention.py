"""attention(q, k, v[, mask])  ->  call_tir(attention kernel, q, k, v[, mask])

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


@dataclass(frozen=True)
class LowerAttention:
    name: ClassVar[str] = "lower_attention"

    def __call__(self, model: Model) -> Model:
        functions: dict[Attention, Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.ATTENTION:
                return None
            what = replace(described(call), few=None)  # one program for any number of queries
            if not fits(what):
                return None
            if what not in functions:
                functions[what] = scope.builder.add_func(attention_kernel(what), what.name)
            return relax.call_tir(functions[what], list(call.args), call.ty)

        return replace(model, module=rewrite(model.module, visit))
