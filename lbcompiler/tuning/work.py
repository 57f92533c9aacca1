"""What is tuned: a kernel at a shape, the space of its configs, and the config to be beaten."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm.tirx import IntImm

from lbcompiler.compiler import planned
from lbcompiler.config import WEIGHT_ONLY, CompileConfig
from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, format_named
from lbcompiler.ir import ops
from lbcompiler.ir.rewrite import calls
from lbcompiler.targets.configs import Shape, Tuned
from lbcompiler.tuning.build import Config, Kernel

KernelFor = Callable[[BlockFormat | None, BlockFormat | None], Kernel]
Space = Mapping[str, Sequence[int]]
Fields = dict[str, int]


@dataclass(frozen=True)
class Work:
    """`default` is what a compile takes without a database, `space` what may vary at this M."""

    kernel: Kernel
    shape: Shape
    default: Config
    space: Space

    @classmethod
    def of(cls, kernel: Kernel, shape: Shape, tuned: Tuned) -> "Work":
        m, k, n = shape
        return cls(kernel, shape, tuned.choose(kernel, n, k).config, kernel.space(m, n, k))

    @property
    def name(self) -> str:
        return f"{self.kernel.name} {'x'.join(map(str, self.shape))}"

    @property
    def default_fields(self) -> Fields:
        """The point of the space that the default is."""
        return {name: getattr(self.default, name) for name in self.space}

    def neighbours(self) -> list[Fields]:
        """The default with one field a choice down or up."""
        default, found = self.default_fields, []
        for name, choices in self.space.items():
            place = list(choices).index(default[name])
            near = [*choices[max(0, place - 1) : place], *choices[place + 1 : place + 2]]
            found += [{**default, name: choice} for choice in near]
        return found

    @property
    def size(self) -> int:
        """Configs in the space."""
        return prod(len(choices) for choices in self.space.values())

    def config(self, fields: Mapping[str, int]) -> Config:
        return replace(self.default, **fields)


def parse_shape(text: str) -> Shape:
    """`128x4096x1024` -> (M, K, N). Raises ConfigError."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ConfigError(
            f"the shape {text!r} is not MxKxN, e.g. 128x4096x4096: M rows of activations, times a "
            "weight of K inputs and N outputs"
        )
    m, k, n = map(int, text.split("x"))
    return m, k, n


def distinct(work: Iterable[Work]) -> list[Work]:
    """Each kernel and shape once, in order."""
    return list({item.name: item for item in work}.values())


def work_of_model(
    model: Any,
    config: CompileConfig,
    kernel_for: KernelFor,
    tuned: Tuned,
    rows: Sequence[int],
) -> list[Work]:
    """Of every linear: at the M that the inputs give it, else at each of `rows`. Kernels without a
    choice are left out.
    """
    held = planned(model, config)
    work = []
    for call in calls(held.module):
        if call.op != ops.DENSE:
            continue
        layer = held.layers[str(call.attrs["layer"])]
        kernel = kernel_for(_format(layer.weight_format), _format(layer.activation_format))
        *lead, k = call.args[0].ty.shape.values
        n = call.ty.shape.values[-1]
        fixed = _rows(lead)
        for m in rows if fixed is None else (fixed,):
            work.append(Work.of(kernel, (m, int(k), int(n)), tuned))
    return [item for item in work if item.space]


def _format(name: str) -> BlockFormat | None:
    return None if name == WEIGHT_ONLY else format_named(name)


def _rows(lead: Iterable[Any]) -> int | None:
    """The product of an activation's leading dimensions; None where one is dynamic."""
    extents = list(lead)
    if not all(isinstance(extent, IntImm) for extent in extents):
        return None
    return prod(int(extent) for extent in extents)
