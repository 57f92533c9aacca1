"""An input without numbers: nothing to launch on a GPU, no matter on a processor."""

from types import SimpleNamespace

import numpy as np
import pytest

from lbcompiler.artifact import PortRecord
from lbcompiler.errors import InputError
from lbcompiler.runtime import Program

PORTS = [PortRecord(name=name, dtype="float32", shape=["rows", 4]) for name in ("x", "past")]
NOTHING = np.zeros((0, 4), np.float32)


def program_for(target: str) -> Program:
    program = Program.__new__(Program)
    program.manifest = SimpleNamespace(dims=[], target=SimpleNamespace(name=target))  # type: ignore[assignment]
    program._states = {"past": None}  # type: ignore[dict-item]
    return program


def test_a_gpu_refuses_it_and_takes_an_empty_past() -> None:
    with pytest.raises(InputError, match="'x' has shape 0x4"):
        program_for("cuda").checked({"x": NOTHING}, PORTS[:1])
    assert program_for("cuda").checked({"past": NOTHING}, PORTS[1:])[1] == {"rows": 0}


def test_a_processor_takes_it() -> None:
    assert program_for("cpu").checked({"x": NOTHING}, PORTS[:1])[1] == {"rows": 0}
