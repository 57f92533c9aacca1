"""Does a compiled model compute its quantization? Its outputs beside the numpy reference's, in dB.

Left alone, two correct computations of one quantized network part: a last bit in an activation
moves one value across a rounding boundary, that moves more in the next layer, and after a few
layers the two differ by about as much as rounding costs. On 4 sentences, MiniLM with the same
numpy linears in onnxruntime and in torch agrees to 35 dB in MXINT8, 25 in MXFP8, 17 in NVFP4
(quantized to float: 28, 21, 10); on 8 tokens, where no value crosses, to more than 110.

So the reference follows: every quantized layer of it rounds the very activation that the compiled
model gave to its own kernel. What differs then is arithmetic and nothing else, and each thing that
the compiler made is still checked: the float code between two linears (`input_db`, the reference's
own activation against the compiled one) and rounding, packing and kernels (through the inputs of
the layers behind, and the outputs).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

import numpy as np

from lbcompiler.passes.fuse_activation_quantize import FuseActivationQuantize
from tests.bench.fake_quantized import Array, Following, qsnr
from tests.bench.windows import rows_of

if TYPE_CHECKING:
    from lbcompiler import Program


class Reference(Protocol):
    """`tests.bench.reference.Reference` or the one for torch."""

    @property
    def layers(self) -> Mapping[str, tuple[int, ...]]: ...
    def __call__(
        self, feeds: Mapping[str, Array], follow: Following | None = None
    ) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Agreement:
    """In dB, of the worst output: `output_db` following, `alone_db` not. `input_db` by layer."""

    output_db: float
    alone_db: float
    input_db: dict[str, float]

    @property
    def worst_input(self) -> tuple[str, float]:
        return min(self.input_db.items(), key=lambda item: item[1], default=("", float("inf")))


@contextmanager
def activations_in_memory() -> Iterator[None]:
    """Compile so that no quantize kernel computes its rows itself: `agreement` reads each layer's
    activation where such a kernel gets it. That the others give the same bits is
    tests/targets/cpu/test_sources.py's to say.
    """
    with patch.object(FuseActivationQuantize, "__call__", lambda _, model: model):
        yield


def agreement(program: Program, reference: Reference, feeds: Mapping[str, Array]) -> Agreement:
    """Both on the same feeds. Raises AssertionError where they quantize different layers."""
    names = quantized_layers(program)
    assert names == set(reference.layers), names ^ set(reference.layers)
    ours, activations = run_recorded(program, feeds)
    follow = Following(activations)
    following = reference(feeds, follow)
    return Agreement(worst(following, ours), worst(reference(feeds), ours), follow.own_db)


def worst(expected: Mapping[str, Array], ours: Mapping[str, Array]) -> float:
    pairs = zip(expected.values(), ours.values(), strict=True)  # torch names its outputs itself
    return min(qsnr(theirs, y) for theirs, y in pairs)


def quantized_layers(program: Program) -> set[str]:
    return {layer.name for layer in program.manifest.layers if layer.weight_format != "none"}


def run_recorded(
    program: Program, feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs by name, and by layer the activation (M, K) that its quantize kernel was given."""
    import tvm

    owners = {
        address(w): name
        for name, w in zip(program.manifest.parameters, program._weights, strict=True)
    }
    waiting = defaultdict(deque)
    for layer in program.manifest.layers:
        for name in layer.weights[:1]:
            waiting[name].append(layer)
    rounded: dict[int, Array] = {}
    found: dict[str, Array] = {}

    def instrument(_: Any, kernel: str, is_before: bool, __: Any, *arguments: Any) -> int:
        tensors = [a for a in arguments if isinstance(a, tvm.runtime.Tensor)]
        if is_before:
            return 0
        if kernel.startswith("quantize_"):
            x = tensors[0].numpy()
            rounded[address(tensors[1])] = rows_of(x, kernel) if x.ndim == 4 else x
        if kernel.startswith("gather_"):  # of operands: pixels, then as many of windows
            images, windows = tensors[0], tensors[len(tensors) // 2]
            pixels = rounded[address(images)].reshape(*images.shape[:3], -1)
            rounded[address(windows)] = rows_of(pixels, kernel)
        if kernel.startswith("gemm_"):
            queue = waiting[next(owners[address(t)] for t in tensors if address(t) in owners)]
            layer = queue[0]
            queue.rotate(-1)
            if layer.activation_format != "none":
                found[layer.name] = rounded[address(tensors[0])]
        return 0

    program._vm.set_instrument(instrument)
    try:
        return program.run(feeds), found
    finally:
        program._vm.set_instrument(lambda *_: 0)


def address(tensor: Any) -> int:
    return int(np.from_dlpack(tensor).ctypes.data)
