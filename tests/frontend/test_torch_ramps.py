"""Position and mask arithmetic on symbolic lengths is folded, and only where it is known."""

from typing import Any

import numpy as np
import pytest

from lbcompiler.frontend.torch import import_torch
from tests.frontend.float_runner import compile_float

torch = pytest.importorskip("torch")
Tensor = Any


class PackedMask(torch.nn.Module):  # type: ignore[misc]
    """The causal mask of transformers, which looks for packed sequences in the positions."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[0]
        positions = (torch.arange(length) + 0)[None]
        first = positions[:, :1] - 1
        sequence = (torch.diff(positions, prepend=first, dim=-1) != 1).cumsum(-1)
        batch = torch.arange(1)[:, None, None, None]
        rows, columns = positions[:, None, :, None], positions[:, None, None, :]
        allowed = x.new_ones((), dtype=torch.bool)
        allowed = allowed & (sequence[batch, rows] == sequence[batch, columns])
        return allowed & (positions[batch, columns] <= positions[batch, rows])


class Known(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        i = torch.arange(2, x.shape[0] + 2)
        grid = i[:, None] * 3 - i[None] + 1
        return (
            grid,
            grid[1:, ::2],
            i.cumsum(0),
            torch.ones_like(i).cumsum(0) - 1,
            torch.diff(i) == 1,
            torch.diff(i * 2, prepend=i[:1]),
            ((i + 1) > i) | (x.long() > 3),
            ~((i + 1) < i),
            i.expand(2, -1).reshape(-1),
            (i == i).to(torch.int64),
            i[i - 2] + 5,
        )


def program(model: Any) -> Any:
    length = torch.export.Dim("length", min=3, max=64)
    return torch.export.export(model, (torch.randn(6),), dynamic_shapes={"x": {0: length}})


def test_the_mask_of_transformers_is_one_comparison() -> None:
    model = import_torch(program(PackedMask()))
    text = str(model.module["main"])
    assert text.count("less_equal") == 1
    assert not any(name in text for name in ("sum", "index_tensor", "logical_and", "R.equal"))
    run = compile_float(model)
    for length in (3, 5, 33):
        (mask,) = run({"x": np.zeros(length, np.float32)})
        np.testing.assert_array_equal(mask[0, 0], np.tril(np.ones((length, length), bool)))


def test_what_is_known_is_right_and_what_is_not_is_computed() -> None:
    network = Known()
    run = compile_float(import_torch(program(network)))
    for length in (3, 7):
        x = torch.randn(length) * 4
        for y, expected in zip(run({"x": x.numpy()}), network(x), strict=True):
            np.testing.assert_array_equal(y, expected.numpy())
