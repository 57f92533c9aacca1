"""The figures of the papers' study: crest factors and QSNR of tensors whose figures are known."""

import math

import numpy as np
import pytest

from tests.bench.methods_table import by_budget
from tests.bench.paper import agreement
from tests.bench.paper_tensors import WEIGHT, Tensor, both, crest_factor, figures

SPREAD_DB = 0.1  # of a mean over 2^17 Gaussian numbers; four times what seeds make
GAUSSIAN = {  # dB, Gaussian rows whose deviations differ: derived in numpy, without our formats
    "mxint8": 41.85,
    "mxfp8": 31.52,
    "mxint4": 16.68,
    "nvint4": 21.26,
    "nvfp4": 20.43,
}


def rows() -> np.ndarray:
    draw = np.random.default_rng(0)
    deviations = np.exp2(draw.uniform(0, 1, (256, 1)))
    return (draw.standard_normal((256, 512)) * deviations).astype(np.float32)


@pytest.mark.parametrize("block", [16, 32])
def test_crest_factors_run_from_one_to_the_root_of_the_block(block: int) -> None:
    assert crest_factor(np.ones((2, 64), np.float32), block) == 1
    alone = np.zeros((2, 64), np.float32)
    alone[:, ::block] = 3
    assert crest_factor(alone, block) == pytest.approx(math.sqrt(block))
    alone[0] = 0  # whose blocks have none
    assert crest_factor(alone, block) == pytest.approx(math.sqrt(block))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_tensors_have_the_known_qsnr(name: str) -> None:
    plain, rotated = both(Tensor("gaussian", WEIGHT, rows()), name, None)
    assert plain == pytest.approx(GAUSSIAN[name], abs=3 * SPREAD_DB)
    assert rotated == pytest.approx(plain, abs=SPREAD_DB)  # still Gaussian


def test_the_crossover_names_the_winner_of_gaussian_tensors() -> None:
    found = [figures(Tensor("gaussian", WEIGHT, rows()))]
    assert agreement(found, "mxint8", "mxfp8") == 1
    assert agreement(found, "mxint4", "mxfp4") == 1


def test_a_budget_stands_beside_the_best_format_within_it() -> None:
    kls = {"mxint4": 0.5, "nvint4": 0.3, "mxint8": 0.1}
    uniform = {(name, "gptq"): {"kl": kl} for name, kl in kls.items()}
    uniform["nvfp4", "rtn"] = {"kl": 0.01}  # another method's
    row = {"method": "gptq", "budget": 5.0, "bits": 4.9, "kl": 0.2, "perplexity": 9.0}
    last = by_budget([row], uniform).splitlines()[-1]
    assert last == "| 5 | 4.900 | 0.2 | 9 | nvint4 | 0.3 |"
