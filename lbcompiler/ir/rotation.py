"""Orthonormal rotations along the last axis: block Hadamards, with random signs or without.

    y = H (s * x) / sqrt(size)     for every block of `size` neighbours

H is Sylvester's matrix of +-1, s the signs of the seed (all +1 without one). x R of an activation
against w R of a weight is x w^T, because R R^T = 1: what rotation spreads over a block is its
outliers. Plain rotations are their own inverse.

The arithmetic is part of the contract, and every kernel repeats it bit for bit: the butterflies
(a, b) -> (a + b, a - b) of neighbours 1 apart, then of those 2, 4, .. size / 2 apart, each sum and
difference rounded to float32, and at the end one product with float32(1 / sqrt(size)). A NaN or an
infinity reaches its whole block.

After arXiv 2510.25602 (a block Hadamard of the format's block, random signs) and 2509.23202 (sizes
16 to 128, no signs); the same signs serve every block, as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Floats

NO_SIGNS = -1  # of a call's attributes: the seed of a rotation without signs
CHUNK = 1 << 18  # elements at a time: a chunk and its copy stay in the second-level cache


@dataclass(frozen=True)
class Rotation:
    """A block Hadamard of `size`, a power of two; `seed`: random signs first, None for none."""

    size: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.size < 2 or self.size & (self.size - 1):
            raise ConfigError(
                f"a Hadamard rotation has a size of 2, 4, 8, .. (usually 16 to 128): {self.size}"
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"the seed of a rotation's signs is 0 or more: {self.seed}")

    @property
    def name(self) -> str:
        """For symbols and weights: hadamard32, hadamard32_signs7."""
        return f"hadamard{self.size}" + ("" if self.seed is None else f"_signs{self.seed}")

    @property
    def factor(self) -> np.float32:
        """1 / sqrt(size), which makes the matrix orthonormal."""
        return np.float32(self.size**-0.5)

    @property
    def signs(self) -> Floats:
        """(size,) of +-1: the bits of PCG64, whose stream numpy never changes."""
        if self.seed is None:
            return np.ones(self.size, np.float32)
        words = np.random.PCG64(self.seed).random_raw(-(-self.size // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
        return np.where(bits[: self.size], np.float32(-1), np.float32(1))

    def divides(self, k: int) -> bool:
        return k % self.size == 0

    def attributes(self) -> dict[str, int]:
        """For a call's attributes; `rotation_of` is the inverse."""
        return {"size": self.size, "seed": NO_SIGNS if self.seed is None else self.seed}

    def apply(self, x: NDArray[np.generic]) -> Floats:
        """x R, (..., K) -> (..., K) float32. Raises ConfigError on a K of broken blocks."""
        return self._rotated(x, self.signs, is_inverse=False)

    def inverse(self, y: NDArray[np.generic]) -> Floats:
        """x of y = x R, up to rounding."""
        return self._rotated(y, self.signs, is_inverse=True)

    def _rotated(self, x: NDArray[np.generic], signs: Floats, is_inverse: bool) -> Floats:
        if x.ndim == 0 or not self.divides(x.shape[-1]):
            raise ConfigError(
                f"a Hadamard rotation of {self.size} needs a last axis in multiples of it: "
                f"{x.shape}"
            )
        blocks = np.ascontiguousarray(x, np.float32).reshape(-1, self.size)
        out = np.empty(blocks.shape, np.float32)
        step = max(1, CHUNK // self.size)
        before, after = (np.float32(1), signs) if is_inverse else (signs, np.float32(1))
        with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN, as in a kernel
            for start in range(0, len(blocks), step):
                part = slice(start, start + step)
                out[part] = self._butterflies(blocks[part] * before) * after
        return out.reshape(x.shape)

    def _butterflies(self, blocks: Floats) -> Floats:
        """Of (B, size), with the blocks side by side: numpy is fast along long last axes only."""
        columns, distance = np.ascontiguousarray(blocks.T), 1
        while distance < self.size:
            pairs = columns.reshape(-1, 2, distance, len(blocks))
            first, second = pairs[:, 0], pairs[:, 1]
            total = first + second
            np.subtract(first, second, out=second)
            first[...] = total
            distance *= 2
        columns *= self.factor
        return columns.T


def rotation_of(attrs: Mapping[str, Any]) -> Rotation:
    """The rotation that a call carries."""
    seed = int(attrs["seed"])
    return Rotation(int(attrs["size"]), None if seed == NO_SIGNS else seed)
