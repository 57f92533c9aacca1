"""Linears of other libraries, of the same shape and about the same bits, to be timed beside ours.

| peer | weights | activations |
|---|---|---|
| `onnxruntime_float` | float32 | float32 |
| `onnxruntime_dynamic_int8` | int8, one scale a tensor | uint8, one scale a tensor |
| `onnxruntime_nbits4`, `..8` | MatMulNBits, blocks of 32, accuracy level 4 | int8 inside |
| `openvino_int4_g32`, `..8` | groups of 32, as NNCF writes them | int8, groups of 32 |

Every call of a peer includes the quantization of the activations, as ours does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from lbcompiler.errors import ConfigError, reason_of
from lbcompiler.ir.model import Array
from lbcompiler.targets.configs import Shape
from lbcompiler.targets.cpu.bench import copies_of

BLOCK = 32  # of the peers' block formats: the one that all of them have


@dataclass(frozen=True)
class Peer:
    """`run` computes the linear `calls` times, each with weights of its own."""

    run: Callable[[], Any]
    calls: int


def check_peers(names: Sequence[str], shapes: Sequence[Shape]) -> None:
    """Raises ConfigError for a peer that is unknown, not installed, or does not take a shape."""
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"unknown peer {name!r}: choose of {', '.join(PEERS)}")
        if find_spec(name) is None:
            raise ConfigError(
                f"the peer {name} is not installed: pip install {name}, or leave it out of --peers"
            )
        for _, k, _ in shapes:
            if name == "openvino" and k % BLOCK:
                raise ConfigError(
                    f"the peer openvino takes K in whole groups of {BLOCK}, not {k}: choose "
                    "another shape, or leave it out of --peers"
                )


def peers(
    names: Sequence[str], bits: int, shape: Shape, threads: int, cold: int
) -> tuple[dict[str, Peer], dict[str, str]]:
    """(every variant of the peers asked for that ran once, the reasons of those that did not).

    Of 4 or 8 bits: the fewest that hold ours. `cold` is as in `targets.cpu.bench`.
    """
    width = 4 if bits <= 4 else 8
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            made = PEERS[name](width, shape, threads, cold)
            for peer in made.values():
                peer.run()
        except Exception as error:
            missing[name] = reason_of(error)
        else:
            found |= made
    return found, missing


def _onnxruntime(bits: int, shape: Shape, threads: int, cold: int) -> dict[str, Peer]:
    _, k, n = shape

    def peer(linear: Callable[[int], Linear], nbytes: int) -> Peer:
        count = copies_of(nbytes, cold)
        session = _session([linear(i) for i in range(count)], shape, threads)
        feeds = {"x": _activations(shape)}
        return Peer(lambda: session.run(None, feeds), count)

    return {
        "onnxruntime_float": peer(lambda i: _in_float(i, shape), 4 * k * n),
        "onnxruntime_dynamic_int8": peer(lambda i: _dynamic_int8(i, shape), k * n),
        f"onnxruntime_nbits{bits}": peer(lambda i: _blocked(i, shape, bits), k * n * bits // 8),
    }


Linear = tuple[list[Any], dict[str, Array]]  # nodes from x to y<i>, weights by name


def _session(linears: list[Linear], shape: Shape, threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    m, k, n = shape
    real = TensorProto.FLOAT
    weights = {name: value for _, held in linears for name, value in held.items()}
    graph = helper.make_graph(
        [node for nodes, _ in linears for node in nodes],
        "linears",
        [helper.make_tensor_value_info("x", real, [m, k])],
        [helper.make_tensor_value_info(f"y{i}", real, [m, n]) for i in range(len(linears))],
        [_elsewhere(name, value) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _elsewhere(name: str, value: Array) -> Any:
    """A weight that the session is given beside the model: cold ones take too long to serialize."""
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, dims=value.shape, data_type=kind)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor


def _in_float(i: int, shape: Shape) -> Linear:
    from onnx import helper

    _, k, n = shape
    weight = np.random.default_rng(i).standard_normal((k, n), np.float32)
    return [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"])], {f"w{i}": weight}


def _dynamic_int8(i: int, shape: Shape) -> Linear:
    from onnx import TensorProto, helper

    _, k, n = shape
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], [f"q{i}", f"s{i}", f"z{i}"]),
        node("MatMulInteger", [f"q{i}", f"w{i}", f"z{i}", f"wz{i}"], [f"i{i}"]),
        node("Cast", [f"i{i}"], [f"f{i}"], to=TensorProto.FLOAT),
        node("Mul", [f"s{i}", f"ws{i}"], [f"p{i}"]),
        node("Mul", [f"f{i}", f"p{i}"], [f"y{i}"]),
    ]
    weight = _bytes(i, k, n).view(np.int8)
    scale = np.array(0.01, np.float32)
    return nodes, {f"w{i}": weight, f"wz{i}": np.array(0, np.int8), f"ws{i}": scale}


def _blocked(i: int, shape: Shape, bits: int) -> Linear:
    from onnx import helper

    _, k, n = shape
    attributes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    node = helper.make_node(
        "MatMulNBits",
        ["x", f"w{i}", f"s{i}"],
        [f"y{i}"],
        domain="com.microsoft",
        **attributes,
    )
    blocks = -(-k // BLOCK)
    codes = _bytes(i, n, blocks, BLOCK * bits // 8)
    return [node], {f"w{i}": codes, f"s{i}": np.full((n, blocks), 0.01, np.float32)}


def _openvino(bits: int, shape: Shape, threads: int, cold: int) -> dict[str, Peer]:
    import openvino
    from openvino import opset13

    m, k, n = shape
    source = opset13.parameter([m, k], np.float32)

    def linear(i: int) -> Any:
        codes = _bytes(i, n, k // BLOCK, BLOCK).view(np.int8) >> (8 - bits)
        kind = openvino.Type.i4 if bits == 4 else openvino.Type.i8
        held = opset13.constant(codes, dtype=kind)
        scale = opset13.constant(np.full((n, k // BLOCK, 1), 0.01, np.float16))
        weight = opset13.multiply(opset13.convert(held, "f16"), scale)
        matrix = opset13.reshape(weight, np.array([n, k]), special_zero=False)
        return opset13.matmul(source, opset13.convert(matrix, "f32"), False, True)

    count = copies_of(k * n * bits // 8, cold)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK,
    }
    model = openvino.Model([linear(i) for i in range(count)], [source])
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(_activations(shape)))
    return {f"openvino_int{bits}_g{BLOCK}": Peer(request.infer, count)}


def _activations(shape: Shape) -> Array:
    return np.random.default_rng(0).standard_normal(shape[:2], np.float32)


def _bytes(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


PEERS = {"onnxruntime": _onnxruntime, "openvino": _openvino}
