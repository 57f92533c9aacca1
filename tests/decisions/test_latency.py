"""A budget of time counts the kernels that would be compiled, and is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbcompiler
from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.decisions.latency import ROWS, KernelSeconds, kernel_seconds
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.configs import Source, Tuned
from lbcompiler.targets.cpu import tuned_for
from lbcompiler.targets.cpu.bench import TimedLinear, timed_linear
from lbcompiler.targets.cpu.isa import AVX512_AMX, detect, host_flags, isa_named

NVFP4, MXINT8 = FORMATS["nvfp4"], FORMATS["mxint8"]
MINE = (Source("mine", ()),)


def asked_of(
    monkeypatch: pytest.MonkeyPatch, solution: Solution | None, shapes: Sequence[tuple[int, int]]
) -> tuple[list[tuple[Any, ...]], float]:
    """The linears that are timed, and the sum where each takes 10 s, 4 of them for its input."""
    asked: list[tuple[Any, ...]] = []

    def timed(*said: Any) -> TimedLinear:
        asked.append(said)
        return TimedLinear("", lambda: None, lambda: None, 0, 1, "", "")

    monkeypatch.setattr("lbcompiler.decisions.latency.timed_linear", timed)
    monkeypatch.setattr(
        "lbcompiler.decisions.latency.interleaved", lambda *_: {"whole": 10.0, "quantize": 4.0}
    )
    seconds = kernel_seconds("cpu:generic", MINE, 7)(solution, shapes)
    return asked, seconds


def test_what_is_timed_is_what_would_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("nvfp4", "nvfp4", "absmax", "four_over_six", hadamard=16)
    solution = Solution(choice, 0.0)
    asked, seconds = asked_of(monkeypatch, solution, [(32, 64), (32, 64), (96, 64)])
    tuned = tuned_for("generic", MINE)[1]
    linear = (NVFP4, NVFP4, isa_named("generic"))
    prepared = (0, tuned, "four_over_six", Rotation(16, 7))
    assert asked == [(*linear, (ROWS, 64, 32), *prepared), (*linear, (ROWS, 64, 96), *prepared)]
    assert tuned.sources[0] is MINE[0]
    assert seconds == 3 * 10 - 2 * 4  # three linears read one input, which is quantized once


def test_a_second_product_and_float_linears_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("nvfp4", "nvfp4", "absmax", "absmax", outliers=(3,))
    asked, seconds = asked_of(monkeypatch, Solution(choice, 0.0, taken=32), [(48, 64)])
    assert [said[:2] + said[3:4] for said in asked] == [
        (NVFP4, NVFP4, (ROWS, 64, 48)),
        (MXINT8, MXINT8, (ROWS, 32, 48)),
    ]
    assert seconds == 20
    asked, _ = asked_of(monkeypatch, None, [(48, 64)])
    assert [said[:2] for said in asked] == [(None, None)]


def test_what_this_machine_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = host_flags() - AVX512_AMX.requires
    monkeypatch.setattr("lbcompiler.targets.cpu.isa.host_flags", lambda: lacking)
    with pytest.raises(ConfigError, match=r"avx512_amx.*this machine lacks.*--effective-bits"):
        kernel_seconds("cpu:avx512_amx", (), None)


@pytest.mark.parametrize(("weight", "act"), [(None, None), (MXINT8, None), (MXINT8, NVFP4)])
@pytest.mark.parametrize("rotation", [None, Rotation(16, 1)])
def test_all_of_them_run(weight: Any, act: Any, rotation: Rotation | None) -> None:
    rule = "" if act is None else "four_over_six"
    linear = timed_linear(weight, act, detect(), (3, 48, 32), 0, Tuned(), rule, rotation)
    linear.run()
    assert (linear.quantize is None) == (act is None and rotation is None)


def faked(seconds: dict[str | None, float]) -> KernelSeconds:
    return lambda solution, shapes: (
        len(shapes) * seconds[solution and solution.choice.weight_format]
    )


def test_a_budget_of_time_is_kept(
    short_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_code: None
) -> None:
    taken: dict[str | None, float] = {"nvfp4": 1.0, "mxint8": 3.0, None: 5.0}
    monkeypatch.setattr("lbcompiler.compiler.kernel_seconds", lambda *_: faked(taken))
    said = {"calibration_data": "models/tiny_lm_calibration.npz", "calibration_samples": 4}
    work = Work(tmp_path, jobs=1)

    def ratio(limit: float) -> float:
        artifact = lbcompiler.compile(
            short_lm,
            "cpu",
            exclude="head",
            formats=("nvfp4", "mxint8", "float"),
            sensitivity="output",
            max_latency=limit,
            work=work,
            **said,
        )
        layers = [layer for layer in artifact.manifest.layers if layer.requested == "auto"]
        names = [None if layer.realized == "float32" else layer.realized for layer in layers]
        return float(np.mean([taken[name] for name in names]))

    assert ratio(1.0) == 1.0
    assert 1.0 < ratio(2.0) <= 2.0
    assert ratio(5.0) == 5.0
