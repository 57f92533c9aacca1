"""How far an error of each layer takes the model's output away, by gradients of torch: one forward
and one backward pass a batch, for all layers at once, where measuring takes a pass a layer and
format.

For a small change d of what a layer computes, y of a token, and p what the model says of it,

    KL(p || p') = E[(g d)^2] / 2,   g = gradient of log p(t) in y,   t drawn from p,

and E[g g^T] is the Fisher information. Of it the diagonal counts, and one draw a token; d is taken
for noise over all N channels alike, of the layer's relative error e = ||d||^2 / ||y||^2, y without
the layer's bias:

    KL = e * sum over rows of ||g||^2 ||y||^2 / N / 2 / tokens.

Where no output is logits the same is asked of their noise over signal, with g the gradient of a
sum of its numbers with random signs (Hutchinson's estimate), over the output's length."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lbcompiler.data import Feeds
from lbcompiler.errors import ConfigError
from lbcompiler.ir.model import Array, Layer
from lbcompiler.references import TorchReference
from lbcompiler.verify import token_inputs

SEED = 0  # of what is drawn


def fisher(program: Any, layers: Mapping[str, Layer], batches: Iterable[Feeds]) -> dict[str, float]:
    """By layer: what the model's output loses for a relative error of 1 of the layer's, in nats a
    token or, of a model without logits, as noise over signal. Layers that no gradient reaches are
    left out. `program` is a torch.export program or the path of a .pt2.

    Raises ConfigError where no output has a gradient."""
    import torch

    taps = {layer.output: name for name, layer in layers.items() if layer.output}
    reference = TorchReference(program, tuple(taps))
    draw = torch.Generator().manual_seed(SEED)
    totals: dict[str, float] = {}
    count = 0
    for feeds in batches:
        outputs, kept = reference.graded(feeds)
        sum(_drawn(output, feeds, draw) for output in _judged(outputs, feeds)).backward()
        count += 1
        for tap, (y, bias) in kept.items():
            if y.grad is not None:
                name = taps[tap]
                totals[name] = totals.get(name, 0.0) + _power(y, bias, layers[name])
    return {name: total / max(1, count) for name, total in totals.items()}


def _judged(outputs: Iterable[Any], feeds: Feeds) -> list[Any]:
    """Those that a plan is judged by: the logits where there are any, else all (nats and noise do
    not add up).
    """
    floats = [output for output in outputs if output.is_floating_point()]
    logits = [output for output in floats if _tokens(output, feeds) is not None]
    judged = [output for output in logits or floats if output.requires_grad]
    if not judged:
        raise ConfigError(
            f"sensitivity fisher needs a gradient, and none of the model's "
            f"{'logits' if logits else 'outputs'} has one: choose sensitivity model"
        )
    return judged


def _tokens(output: Any, feeds: Feeds) -> tuple[Array, Array | None] | None:
    return token_inputs(feeds, output.detach().float().numpy())


def _drawn(output: Any, feeds: Feeds, draw: Any) -> Any:
    """What the gradients are of, so that their squares are the sum of a batch over its tokens."""
    import torch

    found = _tokens(output, feeds)
    if found is None:
        signs = torch.randint(0, 2, output.shape, generator=draw) * 2 - 1
        return (output * signs).sum() / output.detach().norm().clamp_min(torch.finfo().tiny)
    _, mask = found
    seen = np.ones(output.shape[:2], bool) if mask is None else mask.astype(bool)
    logits = output.float()[torch.from_numpy(seen)]
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)
    return logits.log_softmax(-1).gather(-1, drawn).sum() / (2 * len(logits)) ** 0.5


def _power(y: Any, bias: Any, layer: Layer) -> float:
    """sum over rows of ||g||^2 ||y - bias||^2 / N; bias (N,) or None."""
    axis = 1 if len(layer.shape) > 2 else -1
    product = y.detach().double().movedim(axis, -1)
    if bias is not None:
        product = product - bias.detach()
    gradients, values = y.grad.double().square().sum(axis), product.square().sum(-1)
    return float((gradients * values).sum()) / float(y.shape[axis])
