"""linear(x.., codes, scales[, tensor_scale][, b])  ->  linear(x.., packed..[, b])

`packed` is the target's own byte layout for the kernel that will run, and that kernel's name goes
into the layer's record. A weight that two layers share in one format is packed once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.ir import ops
from lbcompiler.ir.model import Array, Model, Weight, shared
from lbcompiler.ir.rewrite import Scope, rewrite


class LinearKernel(Protocol):
    """What packing needs to know of a target's kernel."""

    @property
    def name(self) -> str: ...

    @property
    def packing(self) -> str: ...

    def packed_specs(self, n: int, k: int) -> list[tuple[tuple[int, ...], str]]: ...

    def pack(self, weight: Quantized | Array) -> tuple[Array, ...]: ...


KernelFor = Callable[[BlockFormat | None, BlockFormat | None], LinearKernel]


@dataclass(frozen=True)
class PackWeights:
    kernel_for: KernelFor
    name: ClassVar[str] = "pack_weights"

    def __call__(self, model: Model) -> Model:
        weights, layers = dict(model.weights), dict(model.layers)
        packed_names: dict[tuple[str, str], list[str]] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.LINEAR:
                return None
            activation, parts, bias = ops.linear_operands(call)
            sources = [str(scope.call_to(p, ops.WEIGHT).attrs["name"]) for p in parts]
            attrs = {key: call.attrs[key] for key in ("layer", "n", "epilogue")}
            formats = ops.linear_formats(call)
            kernel = self.kernel_for(*formats)
            key = (sources[0], kernel.packing)
            if key not in packed_names:
                packed_names[key] = _pack(weights, sources, kernel)
            names = packed_names[key]
            layer = str(call.attrs["layer"])
            layers[layer] = replace(
                layers[layer], kernel=kernel.name, bias=bias is not None, weights=tuple(names)
            )
            packed = [scope.emit(ops.weight(n, weights[n].shape, weights[n].dtype)) for n in names]
            return ops.linear(
                activation, packed, bias, **attrs, weight_format=formats[0], act_format=formats[1]
            )

        return replace(model, module=rewrite(model.module, visit), weights=weights, layers=layers)


def _pack(weights: dict[str, Weight], sources: list[str], kernel: LinearKernel) -> list[str]:
    held = [weights[name] for name in sources]
    n, k = held[0].shape

    def compute() -> tuple[Array, ...]:
        loaded = [weight.load() for weight in held]
        if len(loaded) == 1:
            return kernel.pack(loaded[0])
        return kernel.pack(Quantized(*loaded, *[None] * (3 - len(loaded))))

    packed = shared(kernel.packed_specs(n, k), compute)
    names = [f"{sources[0]}.{kernel.packing}.{index}" for index in range(len(packed))]
    weights.update(zip(names, packed, strict=True))
    return names
