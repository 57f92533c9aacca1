import math
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from lbcompiler.calibration.segments import Group
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.simulator import dense as simulator_dense
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.decisions.measure import Divergence, Measurement, _squares
from lbcompiler.formats import FORMATS, Quantized
from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.frontend import import_model
from lbcompiler.ir.model import Array
from lbcompiler.metrics import Similarity, TokenAgreement
from lbcompiler.passes import OBSERVE
from lbcompiler.pipeline import run

FLOAT32 = 1e-4  # relative, of sums over a vocabulary in float32 where the referee has float64


@pytest.mark.parametrize("fmt", ["nvfp4", "mxint8"])
def test_kl_and_noise_are_those_of_verify(fmt: str) -> None:
    simulator = Simulator(run(OBSERVE, import_model("models/tiny_lm.onnx", {})))
    ids = np.load("models/tiny_lm_sample.npz")["input_ids"][:2]
    group = simulator.groups[2]
    quantized = [FORMATS[fmt].quantize(simulator.weight(layer)) for layer in group.layers]
    solution = Solution(Choice(fmt, fmt, "", FORMATS[fmt].default_rule), 0.0)

    def weights(_group: str, _solution: Solution) -> list[Quantized]:
        return quantized

    measurement = Measurement(
        simulator, [{"input_ids": ids}], {group.name: group.layers}, weights, None
    )
    found = measurement.plan({group.name: solution})

    def linears(one: Group, x: Array) -> Mapping[str, Array]:
        return measurement._linears(one, solution if one == group else None)(x)

    (ours,) = simulator.run({"input_ids": ids}, linears).values()
    (theirs,) = simulator.run({"input_ids": ids}, measurement._float).values()
    tokens, similarity = TokenAgreement(), Similarity()
    tokens.add(ours, theirs, ids)
    similarity.add(ours, theirs)
    assert found.kl == pytest.approx(tokens.kl, rel=FLOAT32, abs=1e-7)
    assert found.qsnr_db == pytest.approx(similarity.qsnr_db, rel=FLOAT32)
    ((name, alone),) = measurement.alone({group.name: [solution]})
    assert name == group.name
    assert alone == [found]


def test_a_plan_holds_the_weights_of_one_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(run(OBSERVE, import_model("models/tiny_lm.onnx", {})))
    fmt, parts = FORMATS["mxint8"], {group.name: group.layers for group in simulator.groups}
    held: list[tuple[str, weakref.ref[Array]]] = []  # each weight that was ever read, of its group
    reached: list[str] = []
    dequantize = BlockFormat.dequantize

    def check() -> None:
        assert {group for group, weight in held if weight() is not None} <= {reached[-1]}

    def weights(group: str, _solution: Solution) -> list[Quantized]:
        reached.append(group)
        return [fmt.quantize(simulator.weight(layer)) for layer in parts[group]]

    def dequantized(self: BlockFormat, q: Quantized) -> Array:
        weight = dequantize(self, q)
        held.append((reached[-1], weakref.ref(weight)))
        check()
        return weight

    def dense(x: Array, weight: Array, bias: Array | None) -> Array:
        assert any(weight is known() for _, known in held)
        check()
        return simulator_dense(x, weight, bias)

    ids = np.load("models/tiny_lm_sample.npz")["input_ids"]
    feeds = [{"input_ids": ids[:2]}, {"input_ids": ids[2:4]}]
    measurement = Measurement(simulator, feeds, parts, weights, None)
    monkeypatch.setattr("lbcompiler.decisions.measure.dense", dense)
    monkeypatch.setattr(BlockFormat, "dequantize", dequantized)
    measurement.plan(
        dict.fromkeys(parts, Solution(Choice("mxint8", WEIGHT_ONLY, "", "rceil"), 0.0))
    )
    assert reached == list(parts)
    assert len(held) == sum(map(len, parts.values()))


def test_a_loss_that_is_no_number_is_the_worst_there_is() -> None:
    for lost in (Divergence(math.nan), Divergence(0.1, math.nan)):
        assert lost.cost == math.inf
    assert Divergence(math.nan).qsnr_db == -math.inf


def test_what_the_reference_masks_is_no_noise() -> None:
    reference = np.array([[1.0, -math.inf, 2.0]], np.float32)
    assert _squares(reference, np.array([[1.0, -math.inf, 1.0]], np.float32)) == (5.0, 1.0)
    assert math.isnan(_squares(reference, np.array([[math.nan, 0.0, 2.0]], np.float32))[1])
