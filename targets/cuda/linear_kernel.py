"""A linear on the exact route, which every architecture and pair of formats has.

Code times scale is a bfloat16, of weights and activations both, so activations arrive as that.
Without an activation format a row is the sum of two bfloat16, of 16 bits together.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.configs import Program
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.gemm_few import EIGHT, Few, emit_few
from lbcompiler.targets.cuda.gemm_mma import ROW_BYTES, Activations, Tiling, emit_gemm
from lbcompiler.targets.cuda.gemm_wgmma import Wide, emit_wide
from lbcompiler.targets.cuda.intrinsics import by_rows, kernel
from lbcompiler.targets.cuda.layout import (
    DEPTH,
    Array,
    canonical,
    depths,
    pack_codes,
    pack_scales,
    plane_shapes,
    scale_bytes,
    tile_bytes,
    tiles,
)
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.quantize import PLAIN, Quantizer
from lbcompiler.targets.cuda.split import FEW, Parts, Splits, parts_to_fill
from lbcompiler.targets.cuda.weights import Weights

Spec = tuple[tuple[int, ...], str]  # shape and dtype


@dataclass(frozen=True)
class Config:
    """What may be chosen freely for a shape.

    A block computes `rows` x `columns` of y with `row_warps` x `column_warps` warps, over a ring of
    `stages` tiles of 64 k's. Up to 16 rows a block computes 16 columns, and its `few_warps` share
    K, each with a ring of `few_stages`. On sm_90a more than `rows` rows are taken `tokens` at a
    time, over a ring of `wide_stages`, by `blocks` blocks that stay, one a multiprocessor, which
    take shares of y in groups of `group` below one another. K is taken in `few_splits` parts for up
    to 16 rows, and in `splits` parts for up to `rows`, where there would be few blocks.
    """

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    stages: int
    few_warps: int
    few_stages: int
    tokens: int = 256
    wide_stages: int = 4
    blocks: int = 1
    group: int = 4
    few_splits: int = 1
    splits: int = 1

    @property
    def split(self) -> Splits:
        return Splits(self.few_splits, self.splits, self.rows)

    @property
    def wide(self) -> Wide:
        return Wide(self.tokens, self.wide_stages, self.blocks, self.group)

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.rows, self.columns, self.row_warps, self.column_warps, self.stages)


@dataclass(frozen=True)
class LinearKernel:
    """y = epilogue(x @ W^T + bias) for x (M, K), M symbolic, and W (N, K) in `weight` format."""

    weight: BlockFormat
    act: BlockFormat | None
    arch: Arch

    @property
    def route(self) -> str:
        """exact: products of codes and scales in bfloat16; native: block-scaled instructions."""
        return "exact"

    @property
    def name(self) -> str:
        """For the manifest and for symbols."""
        act = "bfloat16x2" if self.act is None else self.act.name
        arch = self.arch.name.replace("+", "_")
        return f"{self.route}_{self.weight.name}_{act}_{arch}"

    def tuned_as(self, m: int) -> str:
        """The name of the kernel whose configs serve it: a tensor scale makes no difference."""
        plain = self.weight.plain
        return self.name if plain is None else replace(self, weight=plain).name

    @property
    def packing(self) -> str:
        """Names the layout of packed weights."""
        return "fragments"

    @property
    def quantizer(self) -> str:
        """Names what `quantize` makes: kernels of one name share quantized activations."""
        return "bfloat16x2" if self.act is None else f"{self.act.name}_bfloat16"

    @property
    def parts(self) -> int:
        """bfloat16 numbers that an activation is the sum of."""
        return 2 if self.act is None else 1

    def quantize(self, k: int, scale_rule: str, prologue: Prologue = PLAIN) -> Any:
        """PrimFunc(x f32 (M, k), activation operands..); with a prologue, its operands in place of
        x and its float results before the others.

        ConfigError for a scale rule that has to search.
        """
        return Quantizer(self.act, prologue).build(k, scale_rule)

    def quantized_specs(self, k: int) -> list[Spec]:
        """Of the activation operands, without the leading M: bfloat16 as uint16, K padded with
        zeros to tiles; one tensor scale a row.
        """
        specs: list[Spec] = [((self.parts, depths(k) * DEPTH), "uint16")]
        if self.act is not None and self.act.has_tensor_scale:
            specs.append(((1,), "float32"))
        return specs

    def quantized_shapes(self, m: Any, k: int) -> list[tuple[tuple[Any, ...], str]]:
        """Of the activation operands, for M rows, which may be symbolic."""
        return [((m, *shape), dtype) for shape, dtype in self.quantized_specs(k)]

    def gemm(
        self, n: int, k: int, *, bias: bool, epilogue: str = "none", config: Config | None = None
    ) -> Any:
        """PrimFunc(activation operands.., packed weights..[, bias f32 (n,)], y f32 (M, n)[, what
        `scratch` says]).
        """
        chosen = config or self.default_config(n, k)
        self._check(chosen)
        with kernel() as builder:
            m = tirx.Var("m", "int64")
            x = Activations.declare(m, k, self.parts)
            row_scales = self._row_scales(m)
            weights = Weights.declare(self.weight, n, k)
            has_scale = self.weight.has_tensor_scale
            output = Output.declare(m, n, row_scales, has_scale, bias, epilogue)
            few, some = chosen.split.declare(n)

            def emit_up_to(rows: int) -> None:
                shape = Few(rows, chosen.few_warps, chosen.few_stages)
                emit_few(shape, x, weights, output, few)

            by_rows(
                m,
                (EIGHT, lambda: emit_up_to(EIGHT)),
                (FEW, lambda: emit_up_to(FEW)),
                (None, lambda: self._emit_many(chosen, x, weights, output, some)),
            )
            chosen.split.combine(few, some, output)
        return builder.get()

    def _emit_many(
        self, config: Config, x: Activations, weights: Weights, output: Output, parts: Parts | None
    ) -> None:
        if not self.has_wgmma and parts is None:
            emit_gemm(config.tiling, x, weights, output)
            return

        def emit_more() -> None:
            if self.has_wgmma:
                emit_wide(config.wide, x, weights, output)
            else:
                emit_gemm(config.tiling, x, weights, output)

        some = (config.rows, lambda: emit_gemm(config.tiling, x, weights, output, parts))
        by_rows(x.m, some, (None, emit_more))

    def scratch(self, n: int, config: Config) -> list[Spec]:
        """Of the results behind y, which nobody reads: room for the sums of a K in parts."""
        return config.split.specs(n)

    @property
    def has_wgmma(self) -> bool:
        """Whether many rows are multiplied by warpgroups."""
        return self.arch.name == "sm_90a"

    def default_config(self, n: int, k: int) -> Config:
        """What `gemm` takes without a config: the deepest rings that fit, of 128 rows if these
        still have three stages; parts of K that fill the GPU and leave every warp of the kernel for
        few rows two tiles, the other's pipeline four.
        """
        few = [
            (warps, stages)
            for warps in (8, 4)
            for stages in (4, 3)
            if Few(16, warps, stages).shared_bytes(ROW_BYTES * self.parts, tile_bytes(self.weight))
            <= self.arch.block_shared
        ]
        count, multiprocessors = depths(k), self.arch.multiprocessors
        few_splits = parts_to_fill(multiprocessors, tiles(n), count, 2 * few[0][0])
        splits = parts_to_fill(multiprocessors, -(-n // 128), count, 4)
        configs = (
            Config(
                rows,
                128,
                2,
                4,
                stages,
                *few[0],
                wide_stages=wide_stages,
                blocks=multiprocessors,
                few_splits=few_splits,
                splits=splits,
            )
            for rows in (128, 64)
            for stages in (4, 3)
            for wide_stages in (4, 3, 2)
        )
        return next(c for c in configs if self._shared_bytes(c) <= self.arch.block_shared)

    def _check(self, config: Config) -> None:
        """ConfigError for more shared memory than a block of the architecture may have."""
        asked = self._shared_bytes(config)
        if asked > self.arch.block_shared:
            raise ConfigError(
                f"{self.name} takes {asked} bytes of shared memory with {config}, and a block of "
                f"{self.arch.name} has {self.arch.block_shared}: take fewer stages or rows"
            )

    def _shared_bytes(self, config: Config) -> int:
        """Of the largest of the kernel's launches."""
        row, tile = ROW_BYTES * self.parts, tile_bytes(self.weight)
        few = Few(16, config.few_warps, config.few_stages)
        launches: list[Tiling | Few | Wide] = [config.tiling, few]
        if self.has_wgmma:
            launches.append(config.wide)
        return max(one.shared_bytes(row, tile) for one in launches)

    def programs(self, n: int, k: int) -> tuple[Program, ...]:
        """The parts of `gemm`, which results of tuning are kept for."""
        few, many = Program("few", FEW, 1), Program("many", None, 128)
        if not self.has_wgmma:
            return few, many
        rows = self.default_config(n, k).rows
        return few, Program("many", rows, rows), Program("wide", None, 2048)

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """The fields of the config that matter for M rows, with the values worth trying, the
        default's among them; what asks for too much shared memory together is refused by `gemm`.
        """
        default = self.default_config(n, k)
        return {
            name: tuple(sorted({*values, getattr(default, name)}))
            for name, values in self._choices(m, n, k).items()
        }

    def _choices(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        if m <= FEW:
            return {"few_warps": (4, 8), "few_stages": (3, 4, 6), "few_splits": (1, 2, 4, 8)}
        if self.has_wgmma and m > self.default_config(n, k).rows:
            return {"tokens": (128, 256), "wide_stages": (2, 3, 4), "group": (2, 4, 8, 16)}
        space = {"rows": (64, 128), "columns": (64, 128), "stages": (2, 3, 4)}
        return space if m > 128 else {**space, "splits": (1, 2, 4, 8)}

    def packed_specs(self, n: int, k: int) -> list[Spec]:
        """Of what `pack` returns for W (n, k), known without it."""
        specs: list[Spec] = [(shape, "uint8") for shape in self._packed_shapes(n, k)]
        return [*specs, ((1,), "float32")] if self.weight.has_tensor_scale else specs

    def pack(self, weight: Quantized) -> tuple[Array, ...]:
        """W quantized as the GEMM reads it: planes, scales[, tensor scale]."""
        w = canonical(weight, self.weight)
        packed = self._packed(w)
        if w.tensor_scale is None:
            return packed
        return (*packed, np.asarray(w.tensor_scale, np.float32).reshape(1))

    def _packed_shapes(self, n: int, k: int) -> list[tuple[int, ...]]:
        """Of `_packed` W (n, k), all of bytes."""
        planes = plane_shapes(n, k, self.weight.element.bits)
        return [*planes, (tiles(n), depths(k), scale_bytes(self.weight))]

    def _packed(self, w: Quantized) -> tuple[Array, ...]:
        """Planes and scales of a W that is `canonical`."""
        planes = pack_codes(w.codes, self.weight.element)
        return (*planes, pack_scales(w.scales, self.weight.block))

    def _row_scales(self, m: Any) -> Any:
        """The argument with the activations' tensor scales, where they have some."""
        if self.act is None or not self.act.has_tensor_scale:
            return None
        return T.arg("row_scales", T.buffer((m, 1), "float32"))
