"""Run ONNX models through the frontend in float, many in one compilation: TVM's fixed cost is
paid once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tvm
from tvm import relax

from lbcompiler.frontend.onnx import import_onnx
from lbcompiler.frontend.onnx_inputs import InputShapes
from lbcompiler.ir.model import Array, Model
from tests.frontend.float_runner import plain_relax

Feeds = Mapping[str, Array]


@dataclass
class Compiled:
    """Models compiled together; `run` gives the outputs of one of them."""

    models: Sequence[Model]

    def __post_init__(self) -> None:
        functions = {}
        for i, model in enumerate(self.models):
            module = plain_relax(model)
            assert len(module.functions) == 1, "the frontend emits one function"
            functions[f"model{i}"] = module["main"].with_attr("global_symbol", f"model{i}")
        self.machine = relax.VirtualMachine(
            tvm.compile(tvm.IRModule(functions), target="llvm"), tvm.cpu()
        )

    def run(self, index: int, feeds: Feeds) -> list[Array]:
        arrays = [
            np.asarray(feeds[port.name], port.dtype, order="C")
            for port in self.models[index].inputs
        ]
        result = self.machine[f"model{index}"](*map(tvm.runtime.tensor, arrays))
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return [output.numpy() for output in outputs]


def imported(proto: onnx.ModelProto, folder: Path, shapes: InputShapes | None = None) -> Model:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return import_onnx(path, shapes)


def run_onnx(
    proto: onnx.ModelProto, feeds: Feeds, folder: Path, shapes: InputShapes | None = None
) -> list[Array]:
    return Compiled([imported(proto, folder, shapes)]).run(0, feeds)
