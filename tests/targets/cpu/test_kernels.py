import numpy as np
import pytest
import tvm
from tvm import relax
from tvm_ffi import structural_equal

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.isa import (
    AVX2,
    AVX512_AMX,
    AVX512_BF16,
    AVX512_VNNI,
    GENERIC,
    detect,
    isa_named,
)
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from tests.targets.cpu.reference import linear

EVERY = [None, *FORMATS.values()]
each_weight = pytest.mark.parametrize(
    "weight", [*EVERY, FORMATS["mxfp4"].scaled], ids=lambda fmt: fmt.name if fmt else "float32"
)


def signature(function) -> list[tuple[tuple[object, ...], str]]:
    """(shape, dtype) of every argument, the symbolic extent as -1."""
    buffers = [parameter.ty for parameter in function.params]
    return [
        (tuple(int(d) if isinstance(d, tvm.tirx.IntImm) else -1 for d in b.shape), str(b.dtype))
        for b in buffers
    ]


@each_weight
@pytest.mark.parametrize("isa", [AVX512_VNNI, GENERIC], ids=lambda isa: isa.name)
def test_specs_are_what_is_packed_and_what_the_functions_take(weight, isa) -> None:
    n, k = 37, 77
    for act in EVERY if weight else [None]:
        kernel = kernel_for(weight, act, isa)
        w = np.ones((n, k), np.float32)
        packed = kernel.pack(w if weight is None else weight.quantize(w))
        specs = kernel.packed_specs(n, k)
        assert [(a.shape, str(a.dtype)) for a in packed] == specs
        operands = [((-1, *shape), dtype) for shape, dtype in kernel.quantized_specs(k)]
        result = [((-1, n), "float32")]
        with_bias = [*specs, ((n,), "float32")]
        assert signature(kernel.gemm(n, k, bias=False)) == [*operands, *specs, *result]
        assert signature(kernel.gemm(n, k, bias=True)) == [*operands, *with_bias, *result]
        if act is not None:
            quantize = kernel.quantize(k, act.default_rule)
            assert signature(quantize) == [((-1, k), "float32"), *operands]


def test_only_small_integers_go_the_integer_way() -> None:
    integer = {"mxint8", "mxint6", "mxint4", "mxfp6", "mxfp4", "nvint4", "nvfp4"}
    for weight in FORMATS.values():
        for act in EVERY:
            is_integer = kernel_for(weight, act, AVX2).is_integer
            assert is_integer == (act is not None and {weight.name, act.name} <= integer)


def test_names_tell_kernels_apart() -> None:
    kernels = [
        kernel_for(w, a, isa) for w in FORMATS.values() for a in EVERY for isa in (AVX2, GENERIC)
    ]
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert kernels[0].name == "integer_mxint8_mxint8_avx2" or kernels[0].act is None


def test_a_tensor_scale_makes_no_difference_to_the_config() -> None:
    fmt = FORMATS["mxfp4"]
    plain, scaled = (kernel_for(weight, fmt, AVX2) for weight in (fmt, fmt.scaled))
    assert plain.tuned_as(8) == scaled.tuned_as(8) == plain.name != scaled.name
    assert plain.default_config(64, 96) == scaled.default_config(64, 96)


@pytest.mark.parametrize(
    ("name", "isa", "m", "other"),
    [
        ("mxint8", AVX512_BF16, 128, "avx512_vnni"),
        ("mxint8", AVX512_AMX, 128, "avx512_amx"),
        ("mxint8", AVX512_AMX, 15, "avx512_vnni"),
        ("mxfp8", AVX512_BF16, 1, "avx512_bf16"),
        ("mxfp8", AVX512_AMX, 128, "avx512_amx"),
        ("mxfp8", AVX512_AMX, 15, "avx512_amx"),
        ("mxint8", AVX2, 8, "avx2"),
    ],
)
def test_a_config_serves_all_instruction_sets_with_the_same_code(name, isa, m, other) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS[name], isa)
    served = kernel_for(FORMATS[name], FORMATS[name], isa_named(other))
    assert kernel.tuned_as(m) == served.name
    is_same = structural_equal(*(k.gemm(64, 64, bias=False) for k in (kernel, served)))
    assert is_same or (isa.has_tiles and m < 16)  # of whose programs one is


def test_kernels_that_share_a_quantizer_make_the_same_operands() -> None:
    act = FORMATS["nvfp4"]
    by_quantizer: dict[str, list[LinearKernel]] = {}
    for weight in FORMATS.values():
        kernel = kernel_for(weight, act, AVX512_VNNI)
        by_quantizer.setdefault(kernel.quantizer, []).append(kernel)
    assert len(by_quantizer["nvfp4_float"]) == 3
    for kernels in by_quantizer.values():
        functions = [kernel.quantize(48, "absmax") for kernel in kernels]
        for function in functions[1:]:
            tvm.ir.assert_structural_equal(function, functions[0], map_free_vars=True)


def test_float_weights_take_float_activations() -> None:
    with pytest.raises(ValueError, match="mxint8"):
        kernel_for(None, FORMATS["mxint8"], AVX2)


def relax_module(kernel: LinearKernel, n: int, k: int) -> tvm.IRModule:
    """main(x (m, k), packed.., bias): quantize, gemm and an addition that FuseOps would like to
    take in.
    """
    builder = relax.BlockBuilder()
    m = tvm.tirx.Var("m", "int64")
    x = relax.Var("x", relax.TensorType([m, k], "float32"))
    packed = [
        relax.Var(f"w{i}", relax.TensorType(list(shape), dtype))
        for i, (shape, dtype) in enumerate(kernel.packed_specs(n, k))
    ]
    bias = relax.Var("bias", relax.TensorType([n], "float32"))
    quantize = builder.add_func(kernel.quantize(k, kernel.act.default_rule), "quantize")
    gemm = builder.add_func(kernel.gemm(n, k, bias=True), "gemm")
    with builder.function("main", [x, *packed, bias]):
        with builder.dataflow():
            types = [
                relax.TensorType([m, *shape], dtype) for shape, dtype in kernel.quantized_specs(k)
            ]
            doubled = builder.emit(relax.op.add(x, x))
            parts = builder.emit(relax.call_tir(quantize, [doubled], types))
            operands = [builder.emit(relax.TupleGetItem(parts, i)) for i in range(len(types))]
            y = builder.emit(
                relax.call_tir(
                    gemm, [*operands, *packed, bias], relax.TensorType([m, n], "float32")
                )
            )
            out = builder.emit_output(relax.op.add(y, y))
        builder.emit_func_output(out)
    return builder.finalize()


def test_a_relax_module_runs_them_with_a_symbolic_m() -> None:
    n, k = 37, 77
    kernel = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], detect())
    executable = relax.build(relax_module(kernel, n, k), target=detect().tvm_target())
    machine = relax.VirtualMachine(executable, tvm.cpu())
    rng = np.random.default_rng(0)
    w = kernel.weight.quantize(rng.standard_normal((n, k)))
    bias = rng.standard_normal(n, np.float32)
    for m in (1, 5, 30):
        x = rng.standard_normal((m, k), np.float32)
        inputs = [tvm.runtime.tensor(a) for a in (x, *kernel.pack(w), bias)]
        y = machine["main"](*inputs).numpy()
        np.testing.assert_array_equal(y, 2 * linear(kernel, x + x, w, bias=bias))
