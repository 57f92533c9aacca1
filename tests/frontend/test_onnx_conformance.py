"""ONNX's own node tests: of every operator some cases, all of what is refused by a list with
reasons.

`LBC_ONNX_CASES=1000 pytest -s tests/frontend/test_onnx_conformance.py` runs every case
(minutes). Inputs that a converter needs as constants (axes, shapes) are made constants first, as
in models.
"""

import os
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lbcompiler.errors import ModelError
from lbcompiler.ir.model import Array, Model
from tests.frontend.onnx_runner import Compiled, imported
from tests.frontend.onnx_unsupported import CASES, OPERATORS

PER_OPERATOR = int(os.environ.get("LBC_ONNX_CASES", "2"))
BATCH = 48  # cases a compilation
OLDEST = 7
FROM_CONSTANTS = {"BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow", "Range"}
TOLERANCE = {"float16": 4e-3, "bfloat16": 2e-2}  # of a result rounded to half, computed in float32


@dataclass
class Case:
    name: str
    operator: str
    proto: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]
    tolerance: float  # ONNX's own


def number(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else value


def version(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain == ""), 0)


def collected() -> dict[str, list[Case]]:
    """The cases by operator; expanded functions and other domains apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    out = defaultdict(list)
    for case in found:
        operator = case.model.graph.node[-1].op_type
        skipped = "_expanded" in case.name or "training" in case.name
        if skipped or version(case.model) < OLDEST or case.model.graph.node[-1].domain:
            continue
        inputs, outputs = case.data_sets[0]
        values = [[number(v) for v in values] for values in (inputs, outputs)]
        out[operator].append(Case(case.name, operator, case.model, *values, case.rtol or 0.0))
    return dict(out)


NODE_TESTS = collected()


def with_constants(case: Case, kept: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The case with all inputs but the first `kept` as initializers, and what is left to feed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    entries = list(proto.graph.input)
    del proto.graph.input[:]
    proto.graph.input.extend(entries[:kept])
    proto.ir_version = max(proto.ir_version, 4)
    for entry, value in list(zip(entries, case.inputs, strict=True))[kept:]:
        proto.graph.initializer.append(numpy_helper.from_array(value, entry.name))
    return proto, {e.name: v for e, v in zip(entries[:kept], case.inputs, strict=False)}


def accepted(case: Case, folder: Path) -> tuple[Model, dict[str, Array]]:
    """The model with as few constants as the frontend takes it with."""
    counts = [len(case.inputs), min(1, len(case.inputs))]
    counts += [0] if case.operator in FROM_CONSTANTS else []
    for count in counts[:-1]:
        try:
            proto, feeds = with_constants(case, count)
            return imported(proto, folder), feeds
        except ModelError:
            continue
    proto, feeds = with_constants(case, counts[-1])
    return imported(proto, folder), feeds


def chosen() -> list[Case]:
    """Some cases of each supported operator: the first and the last, which differ most."""
    out = []
    for operator, cases in sorted(NODE_TESTS.items()):
        if operator in OPERATORS:
            continue
        able = [case for case in cases if not any(part in case.name for part in CASES)]
        assert able, operator
        half = PER_OPERATOR // 2
        out += able if len(able) <= PER_OPERATOR else able[: PER_OPERATOR - half] + able[-half:]
    return out


CHOSEN = chosen()
BATCHES = [CHOSEN[i : i + BATCH] for i in range(0, len(CHOSEN), BATCH)]


@pytest.mark.parametrize("batch", range(len(BATCHES)))
def test_supported_operators(batch: int, tmp_path: Path) -> None:
    cases = BATCHES[batch]
    ready = [accepted(case, tmp_path) for case in cases]
    compiled = Compiled([model for model, _ in ready])
    wrong = []
    for i, case in enumerate(cases):
        for got, want in zip(compiled.run(i, ready[i][1]), case.outputs, strict=False):
            if not same(got, want, case.tolerance):
                wrong.append((case.name, got, want))
    assert not wrong
    operators = {case.operator for case in cases}
    print(f"{len(cases)} cases of {len(operators)} operators equal ONNX's reference")


def same(got: Array, want: Array, tolerance: float) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if got.dtype.kind not in "fV":
        return bool((got == want).all())
    tolerance = max(tolerance / 10, TOLERANCE.get(str(got.dtype), 2e-5))
    found, meant = got.astype(np.float64), want.astype(np.float64)
    largest = np.abs(meant[np.isfinite(meant)]).max(initial=1.0)
    return np.allclose(found, meant, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


@pytest.mark.parametrize("operator", sorted(OPERATORS.keys() & NODE_TESTS.keys()))
def test_refused_operators(operator: str, tmp_path: Path) -> None:
    """Each is an error of one paragraph, and none is on the list that works."""
    case = NODE_TESTS[operator][0]
    with pytest.raises(ModelError) as caught:
        imported(case.proto, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_count_of_operators() -> None:
    supported = sorted(NODE_TESTS.keys() - OPERATORS.keys())
    print(f"{len(supported)} of {len(NODE_TESTS)} operators: {', '.join(supported)}")
    assert len(supported) >= 150
