"""Sensitivity by gradients, beside what errors of layers really cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbcompiler
from lbcompiler.decisions.fisher import fisher
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.frontend import import_model
from lbcompiler.metrics import TokenAgreement

torch = pytest.importorskip("torch")

WORDS, WIDTH, BATCH, LENGTH = 64, 32, 16, 24
ERROR = 1e-4  # relative, squared: small enough for a quadratic
# of an estimate from one draw a token and one noise each: 16 x 24 tokens of heavy-tailed squares
TOLERANCE = 0.35


class Words(torch.nn.Module):
    """Reads words, and has a layer that its output hardly depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        self.loud = torch.nn.Linear(WIDTH, WIDTH)
        self.quiet = torch.nn.Linear(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, WORDS)
        self.noise: dict[str, Any] = {}

    def forward(self, input_ids: Any) -> Any:
        x = self.embed(input_ids)
        x = torch.tanh(self.moved("loud", x)) + 0.05 * torch.tanh(self.moved("quiet", 0.5 * x))
        return self.moved("head", x)

    def moved(self, name: str, x: Any) -> Any:
        y = getattr(self, name)(x)
        if name not in self.noise:
            return y
        drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        return y + drawn * (ERROR * y.square().mean(-1, keepdim=True)).sqrt()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return Words().eval()


def exported(model: Any) -> Any:
    ids = torch.zeros((BATCH, LENGTH), dtype=torch.int64)
    return torch.export.export(model, (ids,))


def feeds(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"input_ids": draw.integers(0, WORDS, (BATCH, LENGTH))}


def kl(model: Any, name: str, ids: np.ndarray) -> float:
    """What noise of relative error ERROR in one layer costs, in nats a token."""
    tokens = TokenAgreement()
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).numpy()
        model.noise = {name: True}
        y = model(torch.from_numpy(ids)).numpy()
        model.noise = {}
    tokens.add(y, wanted, ids)
    return float(tokens.kl)


def test_it_is_the_kl_that_noise_costs(model: Any) -> None:
    program = exported(model)
    layers = import_model(program, {}).layers
    found = fisher(program, layers, [feeds(1), feeds(2)])
    assert set(found) == {"loud", "quiet", "head"}
    for name, cost in found.items():
        measured = kl(model, name, feeds(3)["input_ids"])
        assert cost * ERROR == pytest.approx(measured, rel=TOLERANCE)
    assert found["quiet"] < 0.02 * found["loud"]


class Sum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x: Any) -> Any:
        return self.first(x) + 0.1 * self.second(x)


def test_without_logits_it_is_noise_over_signal() -> None:
    """Of a sum y1 + y2 / 10 the output's noise is e ||y1||^2, and e ||y2||^2 / 100, both without
    their biases.
    """
    model = Sum().eval()
    x = torch.randn((256, 16), generator=torch.Generator().manual_seed(0))
    program = torch.export.export(model, (x,))
    found = fisher(program, import_model(program, {}).layers, [{"x": x.numpy()}])
    with torch.no_grad():
        y = model(x).square().sum()
        parts = {"first": x @ model.first.weight.T, "second": 0.1 * x @ model.second.weight.T}
    for name, part in parts.items():
        # every gradient is a sign (or a tenth of one) over the signal: nothing is left to chance
        assert found[name] == pytest.approx(float(part.square().sum() / y), rel=1e-4)


class Watched(Words):
    """Gives what one of its layers says as well."""

    def forward(self, input_ids: Any) -> Any:
        x = self.embed(input_ids)
        loud, quiet = self.loud(x), self.quiet(0.5 * x)
        return self.head(torch.tanh(loud) + 0.05 * torch.tanh(quiet)), loud


def test_beside_logits_no_other_output_counts(model: Any) -> None:
    watched = Watched().eval()
    watched.load_state_dict(model.state_dict())
    program, plain = exported(watched), exported(model)
    expected = fisher(plain, import_model(plain, {}).layers, [feeds(1)])
    found = fisher(program, import_model(program, {}).layers, [feeds(1)])
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_bias_is_no_error_of_the_layer(kind: str) -> None:
    """Errors are relative to x W^T; the noise that they make is so to an output with the bias."""
    layer = torch.nn.Linear(16, 16) if kind == "linear" else torch.nn.Conv2d(4, 16, 3)
    layer.bias.data += 3.0
    shape = (64, 16) if kind == "linear" else (8, 4, 6, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(layer).eval()
    program = torch.export.export(model, (x,))
    (name,) = program.graph_signature.user_inputs
    (found,) = fisher(program, import_model(program, {}).layers, [{name: x.numpy()}]).values()
    with torch.no_grad():
        y = model(x)
        product = y - layer.bias.reshape(-1, *[1] * (y.dim() - 2))
    # every gradient is a sign over the norm of y
    expected = float(product.square().sum() / y.square().sum())
    assert expected < 0.5
    assert found == pytest.approx(expected, rel=1e-4)


class Counted(torch.nn.Module):
    """What `side` says is rounded before it comes to the output: no gradient passes."""

    def __init__(self, *, only: bool) -> None:
        super().__init__()
        self.main, self.side, self.only = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), only

    def forward(self, x: Any) -> Any:
        side = (self.side(x) > 0).float()
        return side if self.only else self.main(x) + side


@pytest.mark.parametrize(
    ("only", "said"),
    [
        (False, "cannot judge layer 'side'.*--exclude"),
        (True, "none of the model's outputs has one"),
    ],
)
def test_what_has_no_gradient_is_told(only: bool, said: str, tmp_path: Path) -> None:
    x = torch.randn((8, 32), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=said):
        lbcompiler.compile(
            torch.export.export(Counted(only=only).eval(), (x,)),
            "cpu",
            formats=("nvfp4", "mxint8"),
            effective_bits=6.5,
            sensitivity="fisher",
            calibration_data=[{"x": x.numpy()}] * 2,
            work=Work(tmp_path, jobs=1),
        )


def test_a_budget_is_spent_by_it(model: Any, tmp_path: Path) -> None:
    artifact = lbcompiler.compile(
        exported(model),
        "cpu",
        formats=("nvfp4", "mxint8"),
        effective_bits=5.5,  # enough for one of the two smaller layers
        sensitivity="fisher",
        calibration_data=[feeds(seed) for seed in range(8)],
        work=Work(tmp_path, jobs=1),
    )
    formats = {layer.name: layer.realized for layer in artifact.manifest.layers}
    assert formats == {"loud": "mxint8", "quiet": "nvfp4", "head": "nvfp4"}


@pytest.mark.parametrize(
    ("sensitivity", "unit"),
    [
        ("fisher", "KL of the model, nats a token, by gradients"),
        ("model", "noise over signal of the worst output"),
    ],
)
def test_a_budget_of_noise_leaves_gradients_their_unit(
    model: Any, sensitivity: str, unit: str, tmp_path: Path
) -> None:
    artifact = lbcompiler.compile(
        exported(model),
        "cpu",
        formats=("nvfp4", "mxint8"),
        min_qsnr=10,
        sensitivity=sensitivity,
        calibration_data=[feeds(seed) for seed in range(8)],
        work=Work(tmp_path, jobs=1),
    )
    assert len(artifact.manifest.layers) == 3
    for layer in artifact.manifest.layers:
        assert f" ({unit}), number " in layer.reason


def test_onnx_has_no_gradients() -> None:
    with pytest.raises(ConfigError, match="sensitivity fisher takes gradients"):
        lbcompiler.compile(
            "models/tiny_lm.onnx",
            "cpu",
            effective_bits=5,
            sensitivity="fisher",
            calibration_data="models/tiny_lm_calibration.npz",
        )
