"""Every converter against torch, at two sizes of a dynamic dimension; one program a group."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lbcompiler.frontend.torch import import_torch
from tests.frontend.float_runner import compile_float

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional
Tensor = Any
Cases = Mapping[str, Callable[..., Tensor]]

ELEMENTWISE: Cases = {
    "abs": torch.abs,
    "add with alpha": lambda x: torch.add(x, x.flip(0), alpha=0.5),
    "add a number": lambda x: x + 2,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.3),
    "and or xor": lambda x: ((x > 0) & (x < 1)) | ((x > 2) ^ (x > 1)),
    "asin": lambda x: torch.asin(x.clamp(-1, 1)),
    "atan": torch.atan,
    "bool plus int": lambda x: (x > 0) + (x.long() % 3),
    "bool equal": lambda x: (x > 0) == (x > 1),
    "cast to int and back": lambda x: x.to(torch.int32).float() + x.long(),
    "ceil": torch.ceil,
    "celu": lambda x: F.celu(x, 1.3),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp below": lambda x: x.clamp(min=0.1),
    "clamp by a tensor": lambda x: torch.clamp(x, max=x.flip(1)),
    "compare with a number": lambda x: x >= 0.25,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "div": lambda x: x / (x.abs() + 1),
    "div of ints": lambda x: x.long() / 3,
    "div floor": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "div trunc": lambda x: torch.div((x * 9).long(), 4, rounding_mode="trunc"),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "elu": lambda x: F.elu(x, 0.7),
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "float64": lambda x: (x.double() * 2).to(torch.float32),
    "floor divide": lambda x: (x * 7).long() // 3,
    "fmod": lambda x: torch.fmod(x, 0.4),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "half": lambda x: torch.round(x * 4).half().float(),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "isnan": lambda x: torch.isnan(torch.log(x)),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log10": lambda x: torch.log10(x.abs() + 1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs() + 1),
    "logical": lambda x: torch.logical_and(x.long(), x > 0) | torch.logical_not(x > -1),
    "logsigmoid": F.logsigmoid,
    "masked fill": lambda x: x.masked_fill(x > 0.5, -7.0),
    "maximum": lambda x: torch.maximum(x, x.flip(1)) - torch.minimum(x, x * 2),
    "mish": F.mish,
    "mul of bools": lambda x: (x > 0) * (x < 1),
    "neg": lambda x: -x,
    "not": lambda x: ~(x > 0),
    "pow": lambda x: x**2 + x**3 + x**4 + x.abs() ** 0.5 + (x.abs() + 1) ** -0.5 + x.abs() ** 1.7,
    "pow of a number": lambda x: 2.0**x,
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "relu": F.relu,
    "relu6": lambda x: F.relu6(x * 9),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "remainder of ints": lambda x: (x * 9).long() % 4,
    "round": lambda x: torch.round(x * 4) + torch.round(torch.tensor([0.5, 1.5, -0.5, -2.5])),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "rsub": lambda x: 3 - x,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": lambda x: F.softplus(x * 30),
    "softplus beta": lambda x: F.softplus(x, beta=2.0, threshold=5.0),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "trunc": lambda x: torch.trunc(x * 3),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where of ints": lambda x: torch.where(x > 0, 1, 2),
}  # fmt: skip

VIEWS: Cases = {
    "arange": lambda x: torch.arange(x.shape[0]) * 2 + 1,
    "arange with a start and step": lambda x: torch.arange(3, x.shape[0] + 3) * x[:, 0],
    "cat": lambda x: torch.cat([x, x * 2, x[:1]], 0),
    "cat of another dtype": lambda x: torch.cat([x, x.long()], -1),
    "chunk": lambda x: torch.chunk(x, 3, -1)[1] + 1,
    "diff": lambda x: torch.diff(x, dim=0),
    "diff twice with a prefix": lambda x: torch.diff(x, n=2, dim=-1, prepend=x[:, :1]),
    "diff of bools": lambda x: torch.diff(x > 0, dim=1),
    "embedding": lambda x: F.embedding(x.long().abs() % 4, x),
    "expand": lambda x: x[:, None].expand(-1, 3, -1) + 1,
    "flatten": lambda x: x.flatten(),
    "flip": lambda x: x.flip([0, 1]),
    "full": lambda x: x.new_full((x.shape[0], 2), 1.5) + torch.full((1,), 2.0),
    "full of ints": lambda x: torch.zeros(x.shape[0], dtype=torch.int64),
    "gather": lambda x: torch.gather(x, 1, (x.long().abs() % 4)[:, :2]),
    "index": lambda x: x[:, torch.tensor([2, -1, 0])],
    "index twice": lambda x: x[torch.tensor([[1], [-2]]), torch.tensor([[0, 3]])],
    "index in the middle": lambda x: x[None, :, :][:, torch.tensor([1, 0]), torch.tensor([2, 3])],
    "index apart": lambda x: x.reshape(-1, 2, 2)[torch.tensor([0, 1]), :, torch.tensor([1, 0])],
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([3, 1])),
    "index by data": lambda x: x[x.argmax(0)],
    "narrow": lambda x: x.narrow(0, 1, x.shape[0] - 2),
    "ones_like": lambda x: torch.ones_like(x) - torch.zeros_like(x),
    "permute": lambda x: x[None].permute(2, 0, -2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, -1, 1), 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x.reshape(1, 1, -1, 4).repeat(1, 1, 2, 1), 2),
    "repeat": lambda x: x.repeat(2, 3) + 1,
    "repeat symbolic": lambda x: x[:2].repeat(x.shape[0], 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 0),
    "repeat_interleave of all": lambda x: x.repeat_interleave(2),
    "reshape": lambda x: x.reshape(2, -1, 2) * 2,
    "roll": lambda x: x.roll((1, -1), (0, 1)),
    "select": lambda x: x[-2] + x[:, 1][:1],
    "slice": lambda x: x[1:-1, ::2],
    "slice from the end": lambda x: x[-3:],
    "slice beyond the end": lambda x: x[:100] + 1,
    "slice with a step": lambda x: x[1::3],
    "split": lambda x: torch.split(x, [1, 3], -1)[1] * 2,
    "squeeze": lambda x: x[None, :, :1].squeeze().unsqueeze(-1) + 0.5,
    "stack": lambda x: torch.stack([x, x + 1], -1),
    "t": lambda x: x.t() + 1,
    "tril triu": lambda x: torch.tril(x, 1) + torch.triu(x, -1),
    "tril of bools": lambda x: torch.tril(x > 0),
    "unbind": lambda x: x.unbind(1)[2] + 1,
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
}  # fmt: skip

REDUCTIONS: Cases = {
    "all any": lambda x: torch.stack([(x > -9).all(), (x > 9).any()]),
    "all along": lambda x: (x > 0).all(1) | (x > 0).any(-1),
    "amax": lambda x: x.amax((0, 1)) + x.amin(-1, keepdim=True),
    "argmax": lambda x: x.argmax(-1) + x.argmin(1) + x.argmax(),
    "batch norm": lambda x: F.batch_norm(x, torch.arange(4.0), torch.arange(4.0) + 1),
    "cumsum": lambda x: x.cumsum(0),
    "cumsum of the last": lambda x: (x > 0).cumsum(-1),
    "cumsum in the middle": lambda x: x[None].cumsum(1) * 2,
    "group norm": lambda x: F.group_norm(x.t()[None], 2, torch.arange(4.0), torch.ones(4)),
    "instance norm": lambda x: F.instance_norm(x.t()[None]),
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "layer norm weighted": lambda x: F.layer_norm(x, (4,), torch.arange(4.0), torch.ones(4)),
    "log softmax": lambda x: F.log_softmax(x, 0),
    "max": lambda x: x.max() + x.max(0).values,
    "max position": lambda x: x.max(1).indices,
    "max of two": lambda x: torch.max(x, x.flip(0)),
    "mean": lambda x: x.mean(),
    "mean along": lambda x: x.mean(0, keepdim=True),
    "min": lambda x: x.min(-1, keepdim=True).values,
    "norm": lambda x: x.norm(dim=-1) + F.normalize(x, dim=1)[:, 0] + x.norm(1, dim=1),
    "norm of infinity": lambda x: torch.linalg.vector_norm(x, float("inf"), dim=0),
    "prod": lambda x: x.prod(1),
    "rms norm": lambda x: F.rms_norm(x, (4,), torch.arange(4.0), 1e-3),
    "softmax": lambda x: F.softmax(x, -1) + F.softmax(x, 0),
    "std": lambda x: x.std() + x.std(0) + x.std(1, keepdim=True, correction=0),
    "sum": lambda x: x.sum() + x.sum((0, 1)) + x.sum(-1, keepdim=True),
    "sum of bools": lambda x: (x > 0).sum(),
    "var": lambda x: x.var(0) + x.var(dim=0, unbiased=False),
    "var and mean": lambda x: torch.cat(torch.var_mean(x, 1)),
}  # fmt: skip

IMAGES: Cases = {
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average of a divisor": lambda x: F.adaptive_avg_pool2d(x[..., :6], (None, 3)),
    "adaptive average, 1-D": lambda x: F.adaptive_avg_pool1d(x[:, :, 0], 1),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 1),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, own divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average, 1-D": lambda x: F.avg_pool1d(x[:, :, 0], 2, 2, 1),
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max, 1-D": lambda x: F.max_pool1d(x[:, 0], 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, (9, 5)),
    "nearest by a fraction": lambda x: F.interpolate(x, scale_factor=1.3),
    "nearest, smaller": lambda x: F.interpolate(x, scale_factor=0.5),
    "nearest, 1-D": lambda x: F.interpolate(x[:, 0], scale_factor=3.0),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True),
    "bilinear, smaller": lambda x: F.interpolate(x, (3, 4), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, (9, 5), mode="bicubic"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "pad, negative": lambda x: F.pad(x, (-1, 2)),
    "pad, reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad, replicate": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
}  # fmt: skip

STATIC: Cases = {
    "max, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max, ceil and padded": lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True),
    "average, ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average, ceil and padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, ceil, not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (4, 4)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x * 2),
    "meshgrid": lambda x: torch.stack(torch.meshgrid(x[0, 0, 0], x[0, 0, 1], indexing="ij")),
    "glu": lambda x: F.glu(x, -1),
    "in place": lambda x: x.clone().mul_(2).add_(1).relu_(),
    "view assigned": lambda x: _assigned(x.clone()),
}  # fmt: skip


def _assigned(x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    return x


class _All(nn.Module):  # type: ignore[misc]
    def __init__(self, cases: Cases) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(case(x) for case in self.cases.values())


def check(cases: Cases, shapes: list[tuple[int, ...]], dynamic: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    model = _All(cases).eval()
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    program = torch.export.export(model, (inputs[0],), dynamic_shapes=dynamic)
    run = compile_float(import_torch(program))
    for x in inputs:
        for name, y, expected in zip(cases, run({"x": x.numpy()}), model(x), strict=True):
            assert y.shape == tuple(expected.shape), name
            assert (y.dtype == np.float32) == expected.is_floating_point(), name
            np.testing.assert_allclose(y, expected.numpy(), 2e-5, 2e-6, err_msg=name)


def test_elementwise_operators() -> None:
    check(ELEMENTWISE, [(6, 4), (9, 4)], {"x": {0: torch.export.Dim("n", min=2, max=64)}})


def test_views() -> None:
    check(VIEWS, [(6, 4), (10, 4)], {"x": {0: 2 * torch.export.Dim("n", min=2, max=64)}})


def test_reductions_and_normalizations() -> None:
    check(REDUCTIONS, [(6, 4), (9, 4)], {"x": {0: torch.export.Dim("n", min=2, max=64)}})


def test_images() -> None:
    height = torch.export.Dim("height", min=5, max=64)
    check(IMAGES, [(2, 3, 8, 6), (2, 3, 13, 6)], {"x": {2: height}})


def test_operators_of_fixed_size_and_those_that_torch_decomposes() -> None:
    check(STATIC, [(2, 3, 8, 8)], None)
