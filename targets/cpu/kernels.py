"""The table of the CPU's linears: for a pair of formats and an instruction set, the kernel and the
operands it takes.

`kernel_for` is the one way in. A pair whose codes are all small integers takes the integer GEMM,
any other the float GEMM; a format that is None is float32. What a kernel's functions take, in
order:

    quantize(k, rule)   x -> activation operands              None when activations stay in float
    gemm(n, k, ...)     activation operands, packed weights[, bias] -> y
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.targets.configs import Program
from lbcompiler.targets.cpu.decode import divisor
from lbcompiler.targets.cpu.float_activations import pair_stride
from lbcompiler.targets.cpu.gemm import SMALL_M, Config
from lbcompiler.targets.cpu.gemm_float import FloatGemm
from lbcompiler.targets.cpu.gemm_integer import IntegerGemm
from lbcompiler.targets.cpu.isa import AVX512_AMX, AVX512_BF16, AVX512_VNNI, Isa
from lbcompiler.targets.cpu.layout import (
    COLUMNS,
    Array,
    pack_codes,
    pack_columns,
    pack_scales,
    padded,
    plane_shapes,
    row_stride,
    tiles,
)
from lbcompiler.targets.cpu.quantize import Quantizer, Rows, Source

Spec = tuple[tuple[int, ...], str]  # shape and dtype
PROGRAMS = (Program("one", 1, 1), Program("few", SMALL_M - 1, 8), Program("many", None, 128))


@dataclass(frozen=True)
class LinearKernel:
    """y = epilogue(x @ W^T + bias) for x (M, K), M symbolic, and W (N, K) in `weight` format."""

    weight: BlockFormat | None
    act: BlockFormat | None
    isa: Isa

    @property
    def is_integer(self) -> bool:
        """Whether block dot products run in integers."""
        formats = (self.weight, self.act)
        return all(f is not None and f.element.integer_multiplier is not None for f in formats)

    @property
    def name(self) -> str:
        """For the manifest and for symbols."""
        route = "integer" if self.is_integer else "float"
        weight = "float32" if self.weight is None else self.weight.name
        act = "float32" if self.act is None else self.act.name
        return f"{route}_{weight}_{act}_{self.isa.name}"

    def tuned_as(self, m: int) -> str:
        """The name of the kernel whose configs serve it for M rows, being the same code.

        A tensor scale makes no difference. AVX512_BF16 adds products of floats to AVX512_VNNI, and
        AVX512_AMX other ones, and those of integers for many rows.
        """
        weight = self.weight if self.weight is None else self.weight.plain or self.weight
        has_own = {AVX512_BF16: self.takes_pairs, AVX512_AMX: self.takes_tiles(m)}
        isa = self.isa if has_own.get(self.isa, True) else AVX512_VNNI
        return replace(self, weight=weight, isa=isa).name

    @property
    def packing(self) -> str:
        """Names the layout of packed weights: kernels of one name read the same."""
        return self.name

    @property
    def quantizer(self) -> str:
        """Names what `quantize` makes: kernels of one name share quantized activations."""
        if self.act is None:
            return "float32"
        if not self.is_integer:
            return f"{self.act.name}_{'pairs' if self.takes_pairs else 'float'}"
        flags = "_flags" if self._integer_gemm.has_flags else ""
        parts = (self.block, f"zero{self.zero_point}", f"over{self._weight_divisor}{flags}")
        return f"{self.act.name}_by{'_'.join(map(str, parts))}"

    def quantize(self, k: int, scale_rule: str, source: Source | None = None) -> Any:
        """PrimFunc(x f32 (M, k), activation operands..); None when activations stay in float. A
        source takes its own arguments in place of x.

        ConfigError for a scale rule that has to search.
        """
        if self.act is None:
            return None
        quantizer = Quantizer(self.act, source or Rows())
        if not self.is_integer:
            operands = quantizer.pair_operands if self.takes_pairs else quantizer.float_operands
            return operands(k, scale_rule)
        return quantizer.integer_operands(
            k,
            scale_rule,
            block=self.block,
            zero_point=self.zero_point,
            weight_divisor=self._weight_divisor,
            has_flags=self._integer_gemm.has_flags,
        )

    def quantized_specs(self, k: int) -> list[Spec]:
        """Of the activation operands, without the leading M: ((Kp,), "int8"), ..."""
        if self.act is None:
            return [((k,), "float32")]
        row_scales: list[Spec] = [((1,), "float32")] if self.act.has_tensor_scale else []
        if self.takes_pairs:
            scaled: list[Spec] = [((self.act.blocks(k),), "float32"), ((1,), "int32")]
            return [((pair_stride(k),), "int32"), *(row_scales or scaled)]
        if not self.is_integer:
            return [((k,), "float32"), *row_scales]
        flags: list[Spec] = [((1,), "int32")] if self._integer_gemm.has_flags else []
        return [
            ((row_stride(padded(k, self.block)),), "int8"),
            ((self.act.blocks(k),), "float32"),
            ((-(-k // self.block),), "int32"),
            *flags,
            *row_scales,
        ]

    def gemm(
        self, n: int, k: int, *, bias: bool, epilogue: str = "none", config: Config | None = None
    ) -> Any:
        """PrimFunc(activation operands.., packed weights..[, bias f32 (n,)], y f32 (M, n))."""
        return self._gemm.build(n, k, bias=bias, epilogue=epilogue, config=config)

    def default_config(self, n: int, k: int) -> Config:
        """What `gemm` takes without a config."""
        return self._gemm.config(n, k)

    def programs(self, n: int, k: int) -> tuple[Program, ...]:
        """The parts of `gemm`, which results of tuning are kept for."""
        one, few, many = PROGRAMS
        return (one, many) if self.takes_tiles(few.rows) else PROGRAMS

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """The fields of the config that matter for M rows, with the values worth trying."""
        return self._gemm.space(m, n, k)

    def packed_specs(self, n: int, k: int) -> list[Spec]:
        """Of what `pack` returns for W (n, k), known without it."""
        if self.weight is None:
            return [((tiles(n), k, COLUMNS), "float32")]
        fmt = self.weight
        planes = plane_shapes(n, padded(k, fmt.block), fmt.element.bits, self._group)
        specs: list[Spec] = [(shape, "uint8") for shape in planes]
        specs.append(((tiles(n), fmt.blocks(k), COLUMNS), "uint8"))
        return [*specs, ((1,), "float32")] if fmt.has_tensor_scale else specs

    def pack(self, weight: Quantized | Array) -> tuple[Array, ...]:
        """W quantized (float32 where the format is None) as the GEMM reads it: planes, scales[,
        tensor scale].
        """
        if not isinstance(weight, Quantized):
            return (pack_columns(weight),)
        if self.weight is None:
            raise ValueError(f"{self.name} takes float weights")
        planes = pack_codes(weight.codes, self.weight.element, self.weight.block, self._group)
        packed = (*planes, pack_scales(weight, self.weight))
        if weight.tensor_scale is None:
            return packed
        return (*packed, np.asarray(weight.tensor_scale, np.float32).reshape(1))

    @property
    def block(self) -> int:
        """k's of one block of an integer kernel: the shorter of the two formats' blocks."""
        return self._integer_gemm.block

    @property
    def zero_point(self) -> int:
        """What stands for zero in an integer kernel's weights, and its start values take off."""
        return self._integer_gemm.zero_point

    @property
    def takes_pairs(self) -> bool:
        """Whether activations come as pairs of bfloat16 (float_activations.py)."""
        gemm = self._gemm
        return isinstance(gemm, FloatGemm) and gemm.takes_pairs

    def takes_tiles(self, m: int) -> bool:
        """Whether AMX multiplies m rows."""
        return self._gemm.takes_tiles and (m >= SMALL_M or not self.is_integer)

    @property
    def _group(self) -> int:
        return self.isa.k_group if self.is_integer else 1

    @property
    def _weight_divisor(self) -> int:
        return 1 if self.weight is None else divisor(self.weight.element)

    @property
    def _integer_gemm(self) -> IntegerGemm:
        if self.weight is None or self.act is None:
            raise ValueError(f"{self.name} is no integer kernel")
        return IntegerGemm(self.isa, self.weight, self.act)

    @property
    def _gemm(self) -> IntegerGemm | FloatGemm:
        return self._integer_gemm if self.is_integer else FloatGemm(self.isa, self.weight, self.act)


def kernel_for(
    weight_format: BlockFormat | None, act_format: BlockFormat | None, isa: Isa
) -> LinearKernel:
    """The kernel of a linear; there is one for every pair. None means float32.

    Quantized activations against float weights have no kernel: ValueError.
    """
    if weight_format is None and act_format is not None:
        raise ValueError(f"no kernel has {act_format.name} activations and float weights")
    return LinearKernel(weight_format, act_format, isa)
