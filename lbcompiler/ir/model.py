"""What flows through the compiler: a Relax module, its weights, a record of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Weight:
    """A tensor that exists when it is asked for: shape and dtype now, the numbers on `load()`.

    `load` returns a fresh or read-only array of just that shape and dtype; it may read a file,
    transpose or quantize, so a caller uses it once and lets it go. Derived weights keep their
    origin's `load`."""

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]

    @classmethod
    def of(cls, array: Array) -> Weight:
        return cls(array.shape, str(array.dtype), lambda: array)

    def map(self, shape: Iterable[int], fn: Callable[[Array], Array], dtype: str = "") -> Weight:
        """The weight `fn(self)`, computed when loaded."""
        return Weight(
            tuple(shape), dtype or self.dtype, lambda: np.asarray(fn(self.load()), order="C")
        )

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layer:
    """One linear, convolution or matmul of the source model: a row of the manifest.

    `name` is the node's name (ONNX) or module path (torch); `output` the source model's name of the
    value it computes, and `output_has_bias` whether that value already holds the bias, for `verify
    --per-layer`; `output_missing` says why it computes no value of the source any more.
    `weight_scaled`: its weight has a tensor scale, although its format has none.
    `normalized` is the source's name of the batch norm of that value, if there is one: what the
    layer computes once that is folded. `hadamard` is the size of the rotation of its input and its
    weight, 0 for none, and `hadamard_seed` that of its signs, None for none; `hadamard_folded`: the
    linear that makes the input makes it rotated. `smoothing` says how its input was smoothed, ""
    for not at all; `outliers` counts the channels of its input that the layer `<name>.outliers`
    multiplies in a wider format."""

    name: str
    op: str
    shape: tuple[int, ...]  # (N, K) of a linear, (O, C, kh, kw) of a convolution
    output: str = ""
    output_has_bias: bool = False
    output_missing: str = ""
    normalized: str = ""
    requested: str = "float32"
    realized: str = "float32"
    weight_format: str = "none"
    weight_scaled: bool = False
    activation_format: str = "none"
    quantizer: str = "none"
    scale_rule: str = "none"
    activation_scale_rule: str = "none"
    hadamard: int = 0
    hadamard_seed: int | None = None
    hadamard_folded: bool = False
    smoothing: str = ""
    outliers: int = 0
    epilogue: str = "none"
    kernel: str = ""
    reason: str = ""
    bias: bool = False
    weights: tuple[
        str, ...
    ] = ()  # names in the weight file, in the order of the kernel's arguments
    config: Mapping[str, int] = field(default_factory=dict)  # of the kernel; what may be tuned
    config_source: str = ""  # the tuning results it comes from, or "default"

    def without_output(self, why: str) -> Layer:
        """It computes something else than the source's layer now."""
        known = f"{self.output_missing}, {why}" if self.output_missing else why
        return replace(self, output="", normalized="", output_missing=known)


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension by name with its inclusive bounds."""

    name: str
    low: int = 1
    high: int | None = None


@dataclass(frozen=True)
class Port:
    """An input or output of the model."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]  # a string is a dynamic dimension (an expression, for outputs)


@dataclass(frozen=True)
class State:
    """An input and the output that continues it: output = input with `rows` more along `axis`.

    Both are one memory with that axis first, which the caller keeps room in; `past` is the dynamic
    dimension of the input along it."""

    input: str
    output: str
    axis: int
    past: str
    rows: int | str


@dataclass(frozen=True)
class Model:
    """`module["main"]` takes exactly the inputs and returns the outputs (a tuple if several);
    weights are calls of `lbc.weight`, whose names are keys of `weights`. With `states`, an input of
    theirs has the axis first and a capacity of its own, and behind the inputs comes one shape, the
    sizes of their pasts in the order of `pasts`."""

    module: Any  # tvm.IRModule
    weights: dict[str, Weight]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dims: tuple[Dim, ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    source: str = ""  # what it was read from, for messages and the manifest
    parameters: tuple[str, ...] = ()  # after `lift_weights`: main's parameters behind the inputs
    states: tuple[State, ...] = ()


def shared(
    specs: Iterable[tuple[tuple[int, ...], str]], compute: Callable[[], tuple[Array, ...]]
) -> list[Weight]:
    """Weights of these (shape, dtype) that come out of one computation, each loaded once and let
    go.

    The first load computes all, each load gives its part away: nothing is held longer than needed.
    A second load of a part computes again."""
    specs = list(specs)
    held: dict[int, Array] = {}

    def load(index: int) -> Array:
        if index not in held:
            held.update(enumerate(compute()))
        return held.pop(index)

    def loader(index: int) -> Callable[[], Array]:
        return lambda: load(index)

    return [Weight(shape, dtype, loader(i)) for i, (shape, dtype) in enumerate(specs)]


def fresh(weights: dict[str, Weight], stem: str) -> str:
    """`stem`, with a number where the table has it already."""
    name, number = stem, 1
    while name in weights:
        number += 1
        name = f"{stem}.{number}"
    return name
