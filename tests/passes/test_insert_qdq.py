from typing import Any

from tvm import relax

from lbcompiler.formats import FORMATS, BlockFormat
from lbcompiler.ir import ops
from lbcompiler.ir.rewrite import calls
from lbcompiler.passes import InsertQDQ
from tests.passes.build import Body, model_of, same_ir

SHAPE = {"x": ["b", "s", 64]}


def two_readers(first: str, second: str, rule: str = "absmax") -> Any:
    def write(b: Body, x: Any) -> Any:
        y = [
            b(ops.dense(x, b.weight(name, 64, 64), layer=_layer(b, name, fmt, rule)))
            for name, fmt in (("q", first), ("k", second))
        ]
        return b(relax.op.add(*y))

    return write


def _layer(b: Body, name: str, fmt: str, rule: str) -> str:
    return b.layer(name, activation_format=fmt, activation_scale_rule=rule)


def round_trip(b: Body, x: Any, fmt: BlockFormat, rule: str) -> Any:
    quantized = b(ops.quantize(x, fmt=fmt, scale_rule=rule))
    parts = [b(relax.TupleGetItem(quantized, i)) for i in range(fmt.parts)]
    return b(ops.dequantize(parts, fmt=fmt))


def test_layers_that_read_the_same_share_one_quantize() -> None:
    def expected(b: Body, x: Any) -> Any:
        w = b.weight("q", 64, 64)
        rounded = round_trip(b, x, FORMATS["nvfp4"], "absmax")
        q = b(ops.dense(rounded, w, layer=b.layer("q")))
        return b(relax.op.add(q, b(ops.dense(rounded, b.weight("k", 64, 64), layer=b.layer("k")))))

    after = InsertQDQ()(model_of(SHAPE, two_readers("nvfp4", "nvfp4")))
    same_ir(after.module, model_of(SHAPE, expected))


def test_layers_with_other_formats_have_their_own() -> None:
    after = InsertQDQ()(model_of(SHAPE, two_readers("mxfp4", "mxint8", "rceil")))
    found = [c for c in calls(after.module) if c.op == ops.QUANTIZE]
    assert [str(call.attrs["format"]) for call in found] == ["mxfp4", "mxint8"]


def test_left_alone_weights_only() -> None:
    before = model_of(SHAPE, two_readers("none", "none"))
    same_ir(InsertQDQ()(before).module, before)
