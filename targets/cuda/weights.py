"""Packed weights on their way to the tensor cores: from global to shared memory in pieces of 16
bytes, from there to registers, and decoded there.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda.decode import (
    code_pair,
    product,
    scale_byte,
    scale_pair,
    value_pair,
    words_of_lane,
)
from lbcompiler.targets.cuda.intrinsics import (
    Expr,
    Registers,
    Shared,
    bound,
    copy_async,
    int64,
    let,
    load_word,
    load_words,
    shared_out,
)
from lbcompiler.targets.cuda.layout import (
    DEPTH,
    STEPS,
    depths,
    plane_bytes,
    plane_shapes,
    scale_bytes,
    tiles,
)

CHUNK = 16  # bytes of one copy


class Tiles(ABC):
    """Packed W of `n` rows in tiles of 16 rows and some depth, in several buffers (T, S, bytes)."""

    n: int

    @property
    @abstractmethod
    def parts(self) -> list[tuple[Any, int]]:
        """(buffer, bytes of a tile) of planes and scales."""

    @property
    @abstractmethod
    def depth_count(self) -> int:
        """Tiles of a row."""

    @property
    def tile_bytes(self) -> int:
        return sum(size for _, size in self.parts)

    def copy(
        self,
        shared: Shared,
        offset: Expr,
        count: int,
        first: Expr,
        depth: Expr,
        thread: Expr,
        threads: int,
    ) -> None:
        """Start to copy `count` tiles from row tile `first` on, one after another: for each part
        all tiles, from `offset` on. Tiles beyond the last are zeros.
        """
        for buffer, size in self.parts:

            def one(index: Expr, buffer: Any = buffer, size: int = size, to: Expr = offset) -> None:
                tile = let(index // (size // CHUNK))
                place = index % (size // CHUNK) * CHUNK
                is_valid = first + tile < tiles(self.n)
                row = tirx.Select(is_valid, first + tile, tirx.const(0, "int32"))
                source = buffer.ptr_to([int64(row), int64(depth), int64(place)])
                copy_async(shared.at(to + index * CHUNK), source, is_valid)

            shared_out(count * size // CHUNK, thread, threads, one)
            offset = offset + count * size


@dataclass(frozen=True)
class Weights(Tiles):
    """The arguments of a kernel that hold W (n, k), as layout.py has them."""

    fmt: BlockFormat
    n: int
    k: int
    planes: tuple[Any, ...]
    scales: Any

    @classmethod
    def declare(cls, fmt: BlockFormat, n: int, k: int) -> "Weights":
        shapes = plane_shapes(n, k, fmt.element.bits)
        planes = tuple(T.arg(f"w{i}", T.buffer(shape, "uint8")) for i, shape in enumerate(shapes))
        scales = T.arg("w_scales", T.buffer((tiles(n), depths(k), scale_bytes(fmt)), "uint8"))
        return cls(fmt, n, k, planes, scales)

    @property
    def parts(self) -> list[tuple[Any, int]]:
        sizes = [*plane_bytes(self.fmt.element.bits), scale_bytes(self.fmt)]
        return list(zip([*self.planes, self.scales], sizes, strict=True))

    @property
    def depth_count(self) -> int:
        return depths(self.k)

    def load(self, shared: Shared, offset: Expr, count: int, tile: Expr, lane: Expr) -> "Tile":
        """A lane's share of one of the `count` tiles that lie at `offset`."""
        words = Registers(words_of_lane(self.fmt.element), "uint32")
        at = 0
        for size in plane_bytes(self.fmt.element.bits):
            for piece in range(0, size, 512):  # 16 bytes a lane
                each = min(size - piece, 512) // 32
                load_words(words, at, shared.at(offset + tile * size + piece + lane * each), each)
                at += each // 4
            offset = offset + count * size
        each = DEPTH // self.fmt.block
        row = offset + tile * scale_bytes(self.fmt) + lane // 4 * each
        scales = [bound(load_word(shared.at(row + 8 * each * t), each), "uint32") for t in (0, 1)]
        return Tile(self.fmt, words, scales)


@dataclass(frozen=True)
class Tile:
    """A lane's share of one tile: words of codes, and the scales of its two rows."""

    fmt: BlockFormat
    words: Registers
    scales: Sequence[Expr]

    def decoded_scales(self) -> list[list[Expr]]:
        """[row][block]: two bfloat16 each, decoded here."""
        decode = scale_pair(self.fmt.scale)
        steps = range(0, STEPS, max(1, self.fmt.block // 16))
        return [
            [bound(decode(scale_byte(self.fmt, word, step)), "uint32") for step in steps]
            for word in self.scales
        ]

    def fragment(self, step: int, scales: list[list[Expr]]) -> list[Expr]:
        """Registers of a step, pair 2 t + i: half i of row t."""
        decode = value_pair(self.fmt.element)
        block = step * 16 // self.fmt.block
        return [
            bound(
                product(
                    decode(code_pair(self.fmt.element, self.words, 0, step, pair)),
                    scales[pair // 2][block],
                ),
                "uint32",
            )
            for pair in range(4)
        ]
