"""The ceilings: that their loops hold what they claim to measure, and nothing else."""

import re

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import ceilings, dot_bf16
from lbcompiler.targets.cpu.intrinsics import at, kernel, root_block
from lbcompiler.targets.cpu.isa import AVX2, AVX512_BF16, GENERIC, Isa
from tests.targets.cpu.reference import HERE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "STEPS", 1000)
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 16)


@pytest.mark.parametrize(
    ("name", "instruction"), [("dot", "vpdpbusd"), ("bf16", "vdpbf16ps"), ("fma", "vfmadd231ps")]
)
def test_peak_loops_have_only_their_instruction_between_registers(
    name: str, instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = ceilings._peaks(AVX512_BF16)
    function = ceilings._peak(AVX512_BF16, 2, peaks[name]).with_attr("global_symbol", name)
    target = AVX512_BF16.tvm_target()
    module = tvm.compile(tvm.IRModule({name: function}), target=target)
    lines = module.mod.inspect_source("asm").splitlines()
    held = [i for i, line in enumerate(lines) if line.split()[:1] == [instruction]]
    sums = re.findall(rf"{instruction}\t%zmm\d+, %zmm\d+, (%zmm\d+)", "\n".join(lines))
    assert len(sums) == len(held)  # no operand comes from memory
    assert len(set(sums)) == ceilings.CHAINS[16]
    loop = [line.strip() for line in lines[held[0] : held[-1] + 1] if line.strip()[0] != "."]
    assert all(line.startswith(instruction) for line in loop)


@pytest.mark.parametrize("isa", HERE, ids=lambda isa: isa.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_ceiling_runs(isa: Isa, threads: int) -> None:
    found = ceilings.ceilings(isa, threads)
    wanted = {"read"} if isa is GENERIC else {"read", "dot", "fma"}
    if isa.has_bf16:
        wanted.add("bf16")
    if isa.has_tiles:
        wanted.add("tiles")
    assert set(found) == wanted
    for bound in found.values():
        bound.run()
        assert bound.amount > 0
    assert found["read"].amount == 1 << 16


def test_avx2_repeats_no_product() -> None:
    """LLVM would take what is equal in all chains, or in all steps, out of the loop."""
    peaks = ceilings._peaks(AVX2)
    function = ceilings._peak(AVX2, 1, peaks["dot"]).with_attr("global_symbol", "dot")
    module = tvm.compile(tvm.IRModule({"dot": function}), target=AVX2.tvm_target())
    code = module.mod.inspect_source("asm")
    assert code.count("vpmaddubsw") % ceilings.CHAINS[8] == 0
    assert code.count("vpmaddubsw") == code.count("vpmaddwd") > 0


@pytest.mark.skipif(AVX512_BF16 not in HERE, reason="no bfloat16 dot product here")
def test_dot_bf16_adds_both_products() -> None:
    with kernel() as builder:
        x = T.arg("x", T.buffer((2, 16), "int32"))
        y = T.arg("y", T.buffer((16,), "float32"))
        with root_block(), dot_bf16.importing_dot_bf16():
            total = dot_bf16.dot_bf16(y[at(0, 16)], x[0, at(0, 16)], x[1, at(0, 16)])
            T.buffer_store(y, total, [at(0, 16)])
    target = AVX512_BF16.tvm_target()
    function = builder.get().with_attr("global_symbol", "f")
    module = tvm.compile(tvm.IRModule({"f": function}), target=target)
    values = np.arange(64).reshape(2, 32).astype(ml_dtypes.bfloat16)
    out = tvm.runtime.tensor(np.full(16, 0.5, np.float32))
    module["f"](tvm.runtime.tensor(values.view(np.int32)), out)
    wanted = (values[0].astype(np.float32) * values[1]).astype(np.float32).reshape(16, 2).sum(1)
    np.testing.assert_array_equal(out.numpy(), wanted + np.float32(0.5))
