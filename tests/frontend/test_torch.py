"""Whole networks built from torch.nn: imported, compiled in float, and compared with torch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch import functional_program, import_torch
from lbcompiler.ir.model import Dim, Model
from tests.frontend.float_runner import compile_float, run_float

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional
Tensor = Any


class Attention(nn.Module):  # type: ignore[misc]
    """Causal attention with one projection, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Decoder(nn.Module):  # type: ignore[misc]
    """A GPT with a tied head and a position buffer."""

    def __init__(self, vocabulary: int = 50, width: int = 32, longest: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.register_buffer("order", torch.arange(longest)[None], persistent=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.tokens(ids) + self.positions(self.order[:, : ids.shape[1]])
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return {"logits": self.head(x), "hidden": x}


class Vision(nn.Module):  # type: ignore[misc]
    """A ViT: patches by a convolution, a class token, torch's own encoder layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 48, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


class Convolutional(nn.Module):  # type: ignore[misc]
    """What CNNs are made of: strides, depthwise, batch norm, gates, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        )
        self.depthwise = nn.Conv2d(8, 8, 5, padding="same", groups=8)
        self.grouped = nn.Conv2d(8, 16, 1, groups=2)
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.dilated = nn.Conv2d(16, 8, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.sequence = nn.Conv1d(8, 6, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(image)
        y = self.norm(self.grouped(F.hardswish(self.depthwise(x))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.dilated(F.max_pool2d(y * gate, 3, 2, 1))
        wide = F.interpolate(y, scale_factor=2.0, mode="nearest") + self.up(y)
        line = self.sequence(wide.mean(2))
        return wide, line, self.head(wide.mean((2, 3)))


def randomized(model: Any) -> Any:
    """`model` in eval mode, with batch norm statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def imported(model: Any, inputs: tuple[Tensor, ...], dims: Any = None, **options: Any) -> Model:
    program = torch.export.export(model, inputs, dynamic_shapes=dims)
    return import_torch(program, **options)


def assert_equal(run: Any, model: Any, feeds: Mapping[str, Tensor], tolerance: float) -> None:
    with torch.no_grad():
        expected = model(*feeds.values())
    if isinstance(expected, dict):
        expected = list(expected.values())
    expected = expected if isinstance(expected, tuple | list) else [expected]
    outputs = run({name: value.numpy() for name, value in feeds.items()})
    for y, reference in zip(outputs, expected, strict=True):
        reference = reference.float().numpy()
        assert y.shape == reference.shape
        assert np.abs(y - reference).max() <= tolerance * np.abs(reference).max()


def test_a_decoder_with_dynamic_batch_and_length() -> None:
    torch.manual_seed(0)
    network = Decoder().eval()
    dims = {"ids": {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=64)}}
    model = imported(network, (torch.zeros(2, 9, dtype=torch.int64),), dims)
    assert model.dims == (Dim("ids_0", 1, 8), Dim("ids_1", 1, 64))
    assert [port.name for port in model.outputs] == ["logits", "hidden"]
    assert model.outputs[0].shape == ("ids_0", "ids_1", 50)
    run = compile_float(model)
    for batch, length in ((1, 1), (3, 33), (2, 64)):
        ids = torch.randint(0, 50, (batch, length))
        assert_equal(run, network, {"ids": ids}, 2e-6)


def test_layers_have_the_names_of_their_modules() -> None:
    network = Decoder().eval()
    model = imported(network, (torch.zeros(2, 9, dtype=torch.int64),))
    linears = {name: layer for name, layer in model.layers.items() if layer.op == "Linear"}
    assert list(linears) == ["attention.qkv", "attention.out", "up", "down", "head"]
    assert linears["attention.qkv"].shape == (96, 32)
    assert linears["attention.qkv"].output_has_bias
    assert not linears["head"].output_has_bias
    matmuls = [layer for layer in model.layers.values() if layer.op == "MatMul"]
    assert [layer.reason for layer in matmuls] == ["matmul of two activations"] * 2
    np.testing.assert_array_equal(
        model.weights["attention.qkv.weight"].load(), network.attention.qkv.weight.detach()
    )
    tied = [name for name in model.weights if name in ("head.weight", "tokens.weight")]
    assert len(tied) == 1  # a tied weight is stored once


def test_the_output_of_a_layer_is_a_node_of_the_program() -> None:
    program = torch.export.export(Decoder().eval(), (torch.zeros(1, 3, dtype=torch.int64),))
    nodes = {node.name for node in functional_program(program).graph.nodes}
    assert {layer.output for layer in import_torch(program).layers.values()} <= nodes


def test_a_vision_transformer_with_dynamic_batch() -> None:
    torch.manual_seed(0)
    network = randomized(Vision())
    model = imported(network, (torch.randn(2, 3, 16, 16),), {"image": {0: torch.export.Dim.AUTO}})
    linears = [name for name, layer in model.layers.items() if layer.op == "Linear"]
    encoder = "encoder.layers.0"
    assert linears == [
        f"{encoder}.self_attn.in_proj",
        f"{encoder}.self_attn.out_proj",
        f"{encoder}.linear1",
        f"{encoder}.linear2",
        "head",
    ]
    run = compile_float(model)
    for batch in (2, 5):
        assert_equal(run, network, {"image": torch.randn(batch, 3, 16, 16)}, 5e-6)


def test_a_cnn_with_dynamic_width() -> None:
    torch.manual_seed(0)
    network = randomized(Convolutional())
    width = 4 * torch.export.Dim("quarter", min=2, max=50)
    model = imported(network, (torch.randn(1, 3, 16, 24),), {"image": {3: width}})
    assert model.dims == (Dim("image_3", 8, 200),)
    reasons = {name: (layer.op, layer.reason) for name, layer in model.layers.items()}
    assert reasons == {
        "stem.0": ("Conv2d", ""),
        "depthwise": ("Conv2d", "depthwise convolution (groups=8)"),
        "grouped": ("Conv2d", "grouped convolution (groups=2)"),
        "squeeze": ("Conv2d", ""),
        "excite": ("Conv2d", ""),
        "dilated": ("Conv2d", ""),
        "up": ("ConvTranspose2d", "transposed convolution"),
        "sequence": ("Conv1d", ""),
        "head": ("Linear", ""),
    }
    assert model.layers["sequence"].shape == (6, 8, 1, 3)
    run = compile_float(model)
    for columns in (24, 8, 40):
        assert_equal(run, network, {"image": torch.randn(1, 3, 16, columns)}, 5e-6)


class Masked(nn.Module):  # type: ignore[misc]
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        attend = F.scaled_dot_product_attention
        heads = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        added = torch.where(mask, 0.0, -1e4)
        return (
            attend(q, *heads, attn_mask=mask),
            attend(q, *heads, attn_mask=added),
            attend(q, k, v, attn_mask=mask, enable_gqa=True, scale=0.3),
            attend(q, k, v, is_causal=True, enable_gqa=True),
        )


def test_attention_with_masks_and_grouped_heads() -> None:
    torch.manual_seed(0)
    length, keys = torch.export.Dim("length", max=64), torch.export.Dim("keys", max=64)
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.rand(2, 1, 7, 9) > 0.4
    mask[:, :, 2] = False  # a row that sees nothing is zeros
    feeds = {"q": q, "k": k, "v": v, "mask": mask}
    model = imported(
        Masked(), (q, k, v, mask), ({2: length}, {2: keys}, {2: keys}, {2: length, 3: keys})
    )
    assert_equal(compile_float(model), Masked(), feeds, 2e-6)


class Products(nn.Module):  # type: ignore[misc]
    """The ways to write a linear layer without nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))  # (K, N), as in GPT-2's Conv1D
        self.bias = nn.Parameter(torch.randn(6))
        self.stack = nn.Parameter(torch.randn(2, 8, 6))
        self.shared = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.addmm(self.bias, x, self.weight),
            torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=2),
            x @ self.weight,
            torch.mm(x, self.weight * 2),
            torch.bmm(x[None], self.weight[None]),
            torch.matmul(x[None], self.stack),
            torch.einsum("mk,kn->mn", x, self.weight),
            torch.matmul(self.weight.t(), x.t()),
            F.linear(x, self.shared.weight[:4], self.shared.bias[:4]),
            self.shared(self.shared(x)),
            F.linear(x, x),
            torch.matmul(x, self.bias.new_ones(8)),
            self.twice(x.half().float()).to(torch.bfloat16).float(),
        )


def test_products_of_every_spelling() -> None:
    torch.manual_seed(0)
    network = Products().eval()
    network.twice = nn.Linear(8, 8)
    model = imported(network, (torch.randn(5, 8),), {"x": {0: torch.export.Dim("rows", max=99)}})
    ops = [(layer.op, layer.reason[:12]) for layer in model.layers.values()]
    assert ops.count(("Linear", "")) == 10
    assert ops.count(("MatMul", "the constant")) == 3
    assert ops.count(("MatMul", "matmul of tw")) == 1
    assert {"shared", "shared@1", "shared@2"} <= set(model.layers)
    x = torch.randn(5, 8).half().float()
    assert_equal(compile_float(model), network, {"x": x}, 2e-2)  # the last one rounds to bfloat16


def test_half_precision_parameters_compute_in_float32() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    half = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).to(torch.bfloat16).eval()
    half.load_state_dict(network.state_dict())
    model = imported(half, (torch.randn(2, 6, dtype=torch.bfloat16),))
    assert {port.dtype for port in (*model.inputs, *model.outputs)} == {"float32"}
    assert {weight.dtype for weight in model.weights.values()} == {"float32"}
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    (y,) = run_float(model, {"input": x})
    np.testing.assert_allclose(y, half.float()(torch.tensor(x)).detach(), 1e-6, 1e-6)


def test_constants_computed_from_buffers_are_folded() -> None:
    class Rotary(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("frequencies", 1 / 100 ** torch.linspace(0, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            angles = torch.arange(64)[:, None] * self.frequencies[None]
            return x * torch.cat([angles.cos(), angles.sin()], 1)

    model = imported(Rotary(), (torch.randn(64, 16),))
    assert [weight.shape for weight in model.weights.values()] == [(64, 16)]
    assert "cos" not in str(model.module["main"])
    x = torch.randn(64, 16)
    assert_equal(lambda feeds: run_float(model, feeds), Rotary(), {"x": x}, 1e-6)


def test_weights_are_read_late_and_not_copied() -> None:
    network = nn.Linear(40, 30)
    model = imported(network, (torch.randn(2, 40),))
    (weight,) = model.weights.values()
    before = weight.load()
    with torch.no_grad():
        network.weight[0, 0] = 123.0
    assert before[0, 0] == weight.load()[0, 0] == np.float32(123.0)
    assert not before.flags.writeable


class Stateful(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count


def test_what_cannot_be_compiled_is_named() -> None:
    x = torch.randn(3)
    with pytest.raises(ModelError, match=r"changes count.*keeps no state"):
        imported(Stateful(), (x,))
    with pytest.raises(ModelError, match=r"Node .*aten\.sort.* is not supported"):
        imported(_Lambda(lambda x: torch.sort(x).values), (x,))
    with pytest.raises(ModelError, match="complex numbers"):
        imported(_Lambda(lambda x: x * 2), (x.to(torch.complex64),))
    with pytest.raises(ModelError, match="not from Linear"):
        import_torch(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"call model\.eval"):
        imported(nn.BatchNorm1d(3).train(), (torch.randn(4, 3),))


def test_a_size_that_depends_on_data_is_refused() -> None:
    program = torch.export.export(_Lambda(lambda x: x[x > 0]), (torch.randn(3),))
    with pytest.raises(ModelError, match="data"):
        import_torch(program)


class _Lambda(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_input_shapes_fix_name_and_bound() -> None:
    network = Decoder().eval()
    dims = {"ids": {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=64)}}
    program = torch.export.export(
        network, (torch.zeros(2, 9, dtype=torch.int64),), dynamic_shapes=dims
    )
    model = import_torch(program, {"ids": ["rows", Dim("length", 2, 32)]})
    assert model.dims == (Dim("rows", 1, 8), Dim("length", 2, 32))
    fixed = import_torch(program, {"ids": [1, 16]})
    assert fixed.dims == ()
    assert fixed.outputs[0].shape == (1, 16, 50)
    ids = torch.randint(0, 50, (1, 16))
    assert_equal(lambda feeds: run_float(fixed, feeds), network, {"ids": ids}, 2e-6)
    assert math.prod(fixed.outputs[1].shape) == 16 * 32
