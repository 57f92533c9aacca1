"""attention(q, k, v[, mask])  ->  call_tir(attention kernel, q, k, v[, mask])

One kernel for all attentions of a model that differ in nothing but batch and lengths."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm import relax, sym, tirx

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.targets.cpu.attention import attention
from lbcompiler.targets.cpu.attention_few import FEW
from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cpu.isa import Isa


@dataclass(frozen=True)
class LowerAttention:
    isa: Isa
    name: ClassVar[str] = "lower_attention"

    def __call__(self, model: Model) -> Model:
        functions: dict[Attention, Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.ATTENTION:
                return None
            what = described(call)
            if what not in functions:
                built = attention(what, self.isa)
                functions[what] = scope.builder.add_func(built, what.name)
            return relax.call_tir(functions[what], list(call.args), call.ty)

        return replace(model, module=rewrite(model.module, visit))


def described(call: Any) -> Attention:
    """What an `lbc.attention` asks of its kernel."""
    attrs, key_heads = call.attrs, int(call.attrs["key_heads"])
    mask = None
    if len(call.args) == 4:
        extents = zip("BHQK", call.args[3].ty.shape.values, strict=True)
        mask = "".join(axis for axis, extent in extents if not _is_one(extent))
    return Attention(
        _heads(call, 0, int(attrs["heads"])),
        _heads(call, 1, key_heads),
        _heads(call, 2, key_heads),
        depth=int(call.args[0].ty.shape.values[-1]),
        value_depth=int(call.args[2].ty.shape.values[-1]),
        scale=float(attrs["scale"]),
        causal=bool(attrs["causal"]),
        mask=mask,
        few=_has_few(_extent(call, 0, "S"), _extent(call, 1, "S")),
    )


def _has_few(queries: Any, keys: Any) -> bool | None:
    """Whether there are FEW queries or fewer; where that is open, None if there may be more keys
    than queries, for of a few keys either kernel does.
    """
    if isinstance(queries, tirx.IntImm):
        return int(queries) <= FEW
    return False if sym.Analyzer().can_prove_equal(queries, keys) else None


def _extent(call: Any, operand: int, axis: str) -> Any:
    shape = call.args[operand].ty.shape.values
    return shape[str(call.attrs["layouts"][operand]).index(axis)]


def _heads(call: Any, operand: int, count: int) -> Heads:
    layout, first = str(call.attrs["layouts"][operand]), int(call.attrs["first_heads"][operand])
    return Heads(count, layout, first, int(_extent(call, operand, "H")))


def _is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1
