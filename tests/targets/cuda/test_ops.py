"""What is not a linear: each op scheduled for a GPU and emulated, against numpy."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import BlockBuilder

from lbcompiler.ir import ops
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cuda import codegen
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.build import lowered
from lbcompiler.targets.cuda.cache import Cubin
from lbcompiler.targets.cuda.device_code import DeviceCode
from lbcompiler.targets.cuda.resources import Usage
from tests.targets.cuda import needs
from tests.targets.cuda.fake_gpu import image_of, run
from tests.targets.cuda.shared import once

Array = NDArray[Any]
ROWS, WIDTH = 5, 64
HEADS, KEY_HEADS, DEPTH, QUERIES, KEYS = 4, 2, 8, 3, 7
ARCH = arch_named("sm_80")
GAMMA = np.linspace(0.5, 2, WIDTH).astype(np.float32)
BETA = np.linspace(-1, 1, WIDTH).astype(np.float32)
EPSILON = 1e-5
SIGNED, PLAIN = Rotation(64, seed=7), Rotation(16)

# A float32 sum of n terms in any order is off by at most n 2^-24 times the sum of their magnitudes;
# every op here sums at most 64 terms of a few units, and its functions add a few units in the last
# place: 64 * 8 * 2^-24 and as much again.
TOLERANCE = 6.2e-5


def x_of(kind: str) -> Array:
    seed = np.random.default_rng(3)
    if kind == "rows":
        return seed.standard_normal((ROWS, WIDTH)).astype(np.float32)
    if kind == "q":
        return seed.standard_normal((2, QUERIES, HEADS, DEPTH)).astype(np.float32)
    seed = np.random.default_rng("kv".index(kind))
    shape = (2, KEYS, KEY_HEADS, DEPTH)
    return seed.standard_normal(shape).astype(np.float32)


def constant(values: Array) -> Any:
    return relax.const(values)


def layer_norm(x: Any) -> Any:
    return relax.op.nn.layer_norm(x, constant(GAMMA), constant(BETA), axes=[-1], epsilon=EPSILON)


def layer_norm_in_numpy(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON) * GAMMA + BETA


def rms_norm_in_numpy(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * GAMMA


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    return ops.attention(
        q,
        k,
        v,
        scale=DEPTH**-0.5,
        causal=True,
        heads=HEADS,
        key_heads=KEY_HEADS,
    )


def attention_in_numpy(q: Array, k: Array, v: Array) -> Array:
    keys, values = (np.repeat(part, HEADS // KEY_HEADS, axis=2) for part in (k, v))
    scores = np.einsum("bihd,bjhd->bhij", q, keys) * DEPTH**-0.5
    seen = np.arange(KEYS)[None] <= np.arange(QUERIES)[:, None] + (KEYS - QUERIES)
    return np.einsum("bhij,bjhd->bihd", softmax(np.where(seen, scores, -np.inf)), values)


ERF = np.vectorize(math.erf)
ROW_OPS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array]]] = {
    "layer_norm": (layer_norm, layer_norm_in_numpy),
    "rms_norm": (
        lambda x: relax.op.nn.rms_norm(x, constant(GAMMA), axes=[-1], epsilon=EPSILON),
        rms_norm_in_numpy,
    ),
    "softmax": (relax.op.nn.softmax, softmax),
    "gelu": (relax.op.nn.gelu, lambda x: x / 2 * (1 + ERF(x * math.sqrt(0.5)))),
    "silu": (relax.op.nn.silu, lambda x: x / (1 + np.exp(-x))),
    "tanh": (relax.op.tanh, np.tanh),
    "hadamard": (lambda x: ops.hadamard(x, PLAIN), PLAIN.apply),
    "hadamard with signs": (lambda x: ops.hadamard(x, SIGNED), SIGNED.apply),
    "sum of a column": (lambda x: relax.op.sum(x, axis=0), lambda x: x.sum(axis=0)),
    "cumsum": (lambda x: relax.op.cumsum(x, axis=1), lambda x: x.cumsum(axis=1)),
    "sort": (lambda x: relax.op.sort(x, axis=1), lambda x: np.sort(x, axis=1)),
    "argsort": (lambda x: relax.op.argsort(x, axis=1), lambda x: np.argsort(x, axis=1)),
    "argmax": (lambda x: relax.op.argmax(x, axis=1), lambda x: x.argmax(axis=1)),
    "transpose": (relax.op.permute_dims, lambda x: x.T),
}
NAMES = [*ROW_OPS, "attention"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Every op's, from one module on the GPU that is not there."""
    held = np.load(once(tmp_path_factory, "ops", make) / "outputs.npz")
    return {name: held[f"arr_{i}"] for i, name in enumerate(NAMES)}


def make(folder: Path) -> None:
    executable, kernels = codegen.generate(lowered(module(), ARCH), ARCH.tvm_target)
    executable.export_library(str(folder / "ops.so"))
    texts = {kernel.name: kernel.source for kernel in kernels}
    image = image_of(texts)
    cubins = [Cubin(image, {name: Usage(1, 0, 0)}) for name in texts]
    DeviceCode.of(kernels, cubins, ARCH).save(folder / "kernels.safetensors")
    np.savez(folder / "inputs.npz", *(x_of(kind) for kind in ("rows", "q", "k", "v")))
    done = run(
        "import numpy, tvm, pathlib\n"
        "from tvm import relax\n"
        "from lbcompiler.targets.cuda.device_code import DeviceCode\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "library = tvm.runtime.load_module(str(folder / 'ops.so'))\n"
        "for module in DeviceCode.read(folder / 'kernels.safetensors').to_modules():\n"
        "    library.imports[0].import_module(module)\n"
        "inputs = numpy.load(folder / 'inputs.npz')\n"
        "inputs = [tvm.runtime.tensor(inputs[f'arr_{i}'], tvm.cuda()) for i in range(4)]\n"
        "outputs = relax.VirtualMachine(library, tvm.cuda())['main'](*inputs)\n"
        "numpy.savez(folder / 'outputs.npz', *(output.numpy() for output in outputs))\n"
    )
    assert done.returncode == 0, done.stderr


def module() -> Any:
    """main(rows, q, k, v) -> a tuple, all with a symbolic first or second axis."""
    m, n = tvm.tirx.Var("m", "int64"), tvm.tirx.Var("n", "int64")
    shapes = [
        [m, WIDTH],
        [2, n, HEADS, DEPTH],
        *[[2, tvm.tirx.Var("keys", "int64"), KEY_HEADS, DEPTH]] * 2,
    ]
    parameters = [
        relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)
    ]
    builder = BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            outputs = [builder.emit(op(parameters[0])) for op, _ in ROW_OPS.values()]
            outputs.append(builder.emit(attention(*parameters[1:])))
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    return builder.get()


@needs.nvcc  # whose headers the fake driver is compiled with
@pytest.mark.parametrize("name", NAMES)
def test_an_op(name: str, results: dict[str, Array]) -> None:
    if name == "attention":
        expected = attention_in_numpy(x_of("q"), x_of("k"), x_of("v"))
    else:
        expected = ROW_OPS[name][1](x_of("rows"))
    assert results[name].shape == expected.shape
    np.testing.assert_allclose(results[name], expected, rtol=TOLERANCE, atol=TOLERANCE)
