"""Rows that are computed on the way into a quantizer: what `sources.py` says, bit for bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import cpu as device
from tvm import relax, runtime

from lbcompiler.formats import FORMATS
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes import (
    FuseActivationQuantize,
    FuseLinear,
    InsertQDQ,
    QuantizeWeights,
    Rotate,
)
from lbcompiler.passes.lift_weights import LiftWeights
from lbcompiler.quantizers import round_to_nearest
from lbcompiler.targets.cpu import cpu
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.sources import PrologueRows
from lbcompiler.targets.cpu.threads import set_threads
from tests.passes.build import Body, model_of
from tests.targets.cpu.reference import WITHOUT_PRODUCTS, Array, call, compiled, fma

M = 7
LAYER_NORM: dict[str, Any] = {"norm": "layer_norm", "epsilon": 1e-5}
RMS_NORM: dict[str, Any] = {"norm": "rms_norm", "epsilon": 1e-6}
PROLOGUES = (
    Prologue(**LAYER_NORM),
    Prologue(**LAYER_NORM, keeps_row=True),
    Prologue(**LAYER_NORM, combine="add"),
    Prologue(**LAYER_NORM, combine="add", keeps_row=True),
    Prologue(**LAYER_NORM, combine="add", keeps_sum=True, keeps_row=True),
    Prologue(**RMS_NORM),
    Prologue(**RMS_NORM, combine="add", keeps_sum=True),
    Prologue(combine="multiply"),
    Prologue(combine="add", keeps_row=True),
    Prologue(activation="relu", keeps_row=True),
)
TURNED = tuple(
    replace(prologue, rotation=Rotation(16, seed=1))
    for prologue in (
        *PROLOGUES,
        Prologue(),
        Prologue(activation="relu"),
        Prologue(**LAYER_NORM, combine="add", activation="relu"),
    )
)


def named(prologue: Prologue) -> str:
    kept = [name for name in ("sum", "row") if getattr(prologue, f"keeps_{name}")]
    return "_".join([prologue.name, *kept])


def row_total(x: Array, y: Array | None = None) -> Array:
    """The sum of x, or of x * y, over rows: in 4 x 16 partial sums, these pairwise."""
    zeros = -x.shape[1] % 64
    parts = [
        np.pad(a, ((0, 0), (0, zeros))).reshape(len(a), -1, 64) for a in (x, y) if a is not None
    ]
    total = np.zeros((len(x), 64), np.float32)
    for i in range(parts[0].shape[1]):
        step = [part[:, i] for part in parts]
        total = total + step[0] if y is None else fma(*step, total)
    a, b, c, d = (total[:, i : i + 16] for i in range(0, 64, 16))
    total = (a + b) + (c + d)
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return total


def expected(prologue: Prologue, operands: list[Array]) -> tuple[Array, Array]:
    """(sum, row) of the operands."""
    x, *rest = operands
    if prologue.activation == "relu":
        x = np.where(x < 0, np.float32(0), x)
    if prologue.combine != "none":
        x = x + rest.pop(0) if prologue.combine == "add" else x * rest.pop(0)
    if prologue.norm == "none":
        return x, x
    count, centered = np.float32(x.shape[1]), x
    if prologue.norm == "layer_norm":
        centered = x - row_total(x) / count
    variance = row_total(centered, centered) / count + np.float32(prologue.epsilon)
    scaled = centered * (np.float32(1) / np.sqrt(variance))
    if prologue.norm == "rms_norm":
        return x, scaled * rest[0]
    gamma, beta = (np.broadcast_to(row, x.shape) for row in rest)
    return x, fma(scaled, gamma, beta)


def operands_of(prologue: Prologue, k: int) -> list[Array]:
    rng = np.random.default_rng(k)
    rows = [rng.standard_normal((M, k)) * 3 + 1 for _ in range(prologue.rows)]
    gains = {"none": 0, "rms_norm": 1, "layer_norm": 2}[prologue.norm]
    rows += [rng.standard_normal(k) for _ in range(gains)]
    rows[0][0] = 0
    rows[0][1] *= 1e-20
    rows[0][2] *= 1e10
    return [row.astype(np.float32) for row in rows]


@pytest.mark.parametrize("isa", WITHOUT_PRODUCTS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("k", "prologues"),
    [(1, PROLOGUES[2:4]), (77, PROLOGUES), (224, PROLOGUES[4:8]), (80, TURNED)],
)
def test_rows_and_their_operands_are_those_of_the_definition(
    isa: Any, k: int, prologues: tuple[Prologue, ...]
) -> None:
    kernels = [kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], isa)]
    if isa is WITHOUT_PRODUCTS[0] and k in (77, 80):
        kernels += [kernel_for(FORMATS[name], FORMATS[name], isa) for name in ("nvfp4", "mxfp8")]
    for kernel in kernels:
        rule = kernel.act.default_rule
        functions = {named(p): kernel.quantize(k, rule, PrologueRows(p)) for p in prologues}
        module = compiled(isa, plain=kernel.quantize(k, rule), **functions)
        specs = [((M, *shape), dtype) for shape, dtype in kernel.quantized_specs(k)]
        for prologue in prologues:
            operands = operands_of(prologue, k)
            kept = [((M, k), "float32")] * prologue.kept
            results = call(module[named(prologue)], operands, *kept, *specs)
            total, row = expected(prologue, operands)
            if prologue.keeps_sum:
                np.testing.assert_array_equal(results.pop(0), total, named(prologue))
            if prologue.keeps_row:
                np.testing.assert_array_equal(results.pop(0), row, named(prologue))
            if prologue.rotation is not None:
                row = prologue.rotation.apply(row)
            for result, wanted in zip(results, call(module["plain"], [row], *specs), strict=True):
                np.testing.assert_array_equal(result, wanted, named(prologue))


def test_an_activation_is_the_one_of_the_epilogues() -> None:
    prologue = Prologue("silu", "multiply", keeps_row=True)
    kernel = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], detect())
    function = kernel.quantize(77, "rceil", PrologueRows(prologue))
    operands = operands_of(prologue, 77)
    specs = [((M, *shape), dtype) for shape, dtype in kernel.quantized_specs(77)]
    row = call(compiled(detect(), f=function)["f"], operands, ((M, 77), "float32"), *specs)[0]
    x, y = (operand.astype(np.float64) for operand in operands)
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    # the sigmoid's 3 ulp (vector_math), and half of one for each of two products
    np.testing.assert_allclose(row, silu * y, rtol=8 * 2.0**-24, atol=2e-38 * np.abs(x * y).max())


def test_a_layer_norm_is_as_exact_as_its_sums() -> None:
    k, prologue = 1536, Prologue(**LAYER_NORM, keeps_row=True)
    kernel = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], detect())
    function = kernel.quantize(k, "rceil", PrologueRows(prologue))
    operands = operands_of(prologue, k)
    operands[0][3, 5] = 1000  # an outlier, as models have them
    specs = [((M, *shape), dtype) for shape, dtype in kernel.quantized_specs(k)]
    row = call(compiled(detect(), f=function)["f"], operands, ((M, k), "float32"), *specs)[0]
    x, gamma, beta = (operand.astype(np.float64) for operand in operands)
    mean = x.mean(1, keepdims=True)
    scale = 1 / np.sqrt(x.var(1, keepdims=True) + prologue.epsilon)
    scaled = (x - mean) * scale
    additions = k // 64 + 8  # one behind the other
    of_mean = (additions + 1) * np.abs(x).mean(1, keepdims=True) + np.abs(x - mean)
    of_scale = (additions + 4) / 2 + 3
    bound = np.abs(gamma) * (of_mean * scale + of_scale * np.abs(scaled)) + np.abs(
        scaled * gamma + beta
    )
    assert (np.abs(row - (scaled * gamma + beta)) <= bound * 2.0**-24).all()


def two_formats(b: Body, x: Any, y: Any) -> Any:
    """A sum that two kinds of kernels read quantized, and a third reader as it is."""
    total = b(relax.op.add(x, y))
    outputs = []
    for name, fmt in (("first", "mxint8"), ("second", "mxfp8"), ("third", "mxint8")):
        layer = b.layer(
            name,
            weight_format=fmt,
            scale_rule="rceil",
            activation_format="mxint8",
            activation_scale_rule="rceil",
        )
        outputs.append(b(ops.dense(total, b.weight(name, 8, 64), layer=layer)))
    return b(relax.Tuple([*outputs, b(relax.op.nn.relu(total))]))


def run(model: Model, *inputs: Array) -> list[Array]:
    (target,) = cpu()
    lowers = [p for p in target.passes if not isinstance(p, FuseActivationQuantize)]
    for lower in (*lowers, LiftWeights()):
        model = lower(model)
    machine = build(model.module, detect().tvm_target()).load(device())
    weights = [model.weights[name].load() for name in model.parameters]
    set_threads(None)
    outputs = machine["main"](*[runtime.tensor(array) for array in (*inputs, *weights)])
    results = [outputs] if isinstance(outputs, runtime.Tensor) else outputs
    return [output.numpy() for output in results]


@pytest.mark.parametrize("rotated", [(), ("first",), ("first", "second")])
def test_every_reader_of_a_fused_quantize_gets_what_it_had(rotated: tuple[str, ...]) -> None:
    model = model_of({"x": ["b", "s", 64], "y": ["b", "s", 64]}, two_formats)
    model = Rotate(dict.fromkeys(rotated, Rotation(32)))(model)
    for step in (QuantizeWeights(round_to_nearest), InsertQDQ(), FuseLinear()):
        model = step(model)
    fused = FuseActivationQuantize()(model)
    x, y = np.random.default_rng(0).standard_normal((2, 3, 5, 64)).astype(np.float32)
    for result, wanted in zip(run(fused, x, y), run(model, x, y), strict=True):
        np.testing.assert_array_equal(result, wanted)
