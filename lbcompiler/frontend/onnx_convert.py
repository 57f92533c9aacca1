"""The table of converters: (domain, operator) -> the function that emits it. A topic a file."""

from lbcompiler.frontend import (
    onnx_contrib,
    onnx_conv,
    onnx_elementwise,
    onnx_index,
    onnx_linear,
    onnx_move,
    onnx_normalize,
    onnx_pool,
    onnx_quantized,
    onnx_reduce,
    onnx_resize,
    onnx_sequence,
    onnx_slice,
)
from lbcompiler.frontend.onnx_graph import Converter, Node

MAIN: dict[str, Converter] = {
    **onnx_conv.CONVERTERS,
    **onnx_elementwise.CONVERTERS,
    **onnx_index.CONVERTERS,
    **onnx_linear.CONVERTERS,
    **onnx_move.CONVERTERS,
    **onnx_normalize.CONVERTERS,
    **onnx_pool.CONVERTERS,
    **onnx_quantized.CONVERTERS,
    **onnx_reduce.CONVERTERS,
    **onnx_resize.CONVERTERS,
    **onnx_sequence.CONVERTERS,
    **onnx_slice.CONVERTERS,
}
TABLES: dict[str, dict[str, Converter]] = {
    "": {**MAIN, **onnx_contrib.IN_MAIN_DOMAIN},
    "com.microsoft": onnx_contrib.CONVERTERS,
}


def find(node: Node) -> Converter | None:
    return TABLES.get(node.domain, {}).get(node.op)
