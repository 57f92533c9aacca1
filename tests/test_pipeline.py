from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.ir import ops
from lbcompiler.ir.dump import dump_into
from lbcompiler.ir.model import Model
from lbcompiler.pipeline import PassError, run
from tests.passes.build import Body, model_of


def write(b: Body, x: Any) -> Any:
    return b(ops.dense(x, b.weight("w", 8, 64), layer=b.layer("l")))


MODEL = model_of({"x": ["m", 64]}, write)


@dataclass(frozen=True)
class Nothing:
    name: ClassVar[str] = "nothing"

    def __call__(self, model: Model) -> Model:
        return model


@dataclass(frozen=True)
class LosesWeights(Nothing):
    name: ClassVar[str] = "loses_weights"

    def __call__(self, model: Model) -> Model:
        return replace(model, weights={})


@dataclass(frozen=True)
class LosesLayers(Nothing):
    name: ClassVar[str] = "loses_layers"

    def __call__(self, model: Model) -> Model:
        return replace(model, layers={})


@dataclass(frozen=True)
class Raises(Nothing):
    error: Exception
    name: ClassVar[str] = "raises"

    def __call__(self, model: Model) -> Model:
        raise self.error


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LosesWeights(), r"pass loses_weights failed \(after nothing\).*'w'.*does not hold"),
        (LosesLayers(), r"pass loses_layers failed.*'l' has no record"),
        (Raises(ValueError("bits")), r"pass raises failed.*bits"),
    ],
)
def test_a_pass_that_breaks_something_is_named(broken: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        run([Nothing(), broken], MODEL)


def test_a_weight_of_another_shape_is_found() -> None:
    wrong = {"w": replace(MODEL.weights["w"], shape=(8, 65))}
    with pytest.raises(PassError, match=r"\(8, 64\).*\(8, 65\)"):
        run([Nothing()], replace(MODEL, weights=wrong))


def test_the_users_own_faults_pass_through() -> None:
    with pytest.raises(ConfigError, match=r"no such format"):
        run([Raises(ConfigError("no such format"))], MODEL)


def test_the_ir_is_dumped_in_order(tmp_path: Path) -> None:
    dump = dump_into(tmp_path / "ir")
    dump("input", MODEL.module)
    run([Nothing(), Nothing()], MODEL, dump)
    run([Nothing()], MODEL, dump)
    names = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert names == ["00-input.py", "01-nothing.py", "02-nothing.py", "03-nothing.py"]
    assert "lbc.dense" in (tmp_path / "ir" / "03-nothing.py").read_text()
