import math

import numpy as np
import pytest

from lbcompiler.calibration.simulator import Simulator
from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.decisions.measure import Divergence, Measurement, _squares
from lbcompiler.formats import FORMATS, Quantized
from lbcompiler.frontend import import_model
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
    linears = measurement._linears({group.name: solution})
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


def test_a_loss_that_is_no_number_is_the_worst_there_is() -> None:
    for lost in (Divergence(math.nan), Divergence(0.1, math.nan)):
        assert lost.cost == math.inf
    assert Divergence(math.nan).qsnr_db == -math.inf


def test_what_the_reference_masks_is_no_noise() -> None:
    reference = np.array([[1.0, -math.inf, 2.0]], np.float32)
    assert _squares(reference, np.array([[1.0, -math.inf, 1.0]], np.float32)) == (5.0, 1.0)
    assert math.isnan(_squares(reference, np.array([[math.nan, 0.0, 2.0]], np.float32))[1])
