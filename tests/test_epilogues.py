"""The activations of a kernel's epilogue, against torch."""

import numpy as np
import pytest

from lbcompiler.epilogues import EPILOGUES
from lbcompiler.ir import ops


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn.functional
    reference = {
        "none": lambda x: x,
        "gelu_tanh": lambda x: nn.gelu(x, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }.get(name) or getattr(nn, name)
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 1e4, -100, 100]]).astype(np.float32)
    y = EPILOGUES[name](x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, reference(torch.from_numpy(x)).numpy(), rtol=2e-6, atol=2e-6)


def test_every_epilogue_of_the_ir_has_its_reference() -> None:
    assert set(EPILOGUES) == set(ops.EPILOGUES)
