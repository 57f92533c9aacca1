"""How far an error of each layer takes the model's output away, by gradients of torch: one forward
and one backward pass a batch, for all layers at once, where measuring takes a pass a layer and
format.

For a small change d of what a layer computes, y of a token, and p what the model says of it,

    KL(p || p') = E[(g d)^2] / 2,   g = gradient of log p(t) in y,   t drawn from p,

and E[g g^T] is the Fisher information. Of it the diagonal counts, and one draw a token; d is taken
for noise over all N channels alike, of the layer's relative error e = ||d||^2 / ||y||^2:

    KL = e * sum over rows of ||g||^2 ||y||^2 / N / 2 / tokens.

Where an output is no logits the same is asked of its noise over signal, with g the gradient of a
sum of its numbers with random signs (Hutchinson's estimate), over the output's length."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lbcompiler.data import Feeds
from lbcompiler.ir.model import Layer
from lbcompiler.references import TorchReference
from lbcompiler.verify import token_inputs

SEED = 0  # of what is drawn


def fisher(program: Any, layers: Mapping[str, Layer], batches: Iterable[Feeds]) -> dict[str, float]:
    """By layer: what the model's output loses for a relative error of 1 of the layer's, in nats a
    token or as noise over signal. `program` is a torch.export program or the path of a .pt2.
    """
    import torch

    taps = {layer.output: name for name, layer in layers.items() if layer.output}
    reference = TorchReference(program, tuple(taps))
    draw = torch.Generator().manual_seed(SEED)
    totals, count = dict.fromkeys(taps.values(), 0.0), 0
    for feeds in batches:
        outputs, kept = reference.graded(feeds)
        loss = sum(_drawn(output, feeds, draw) for output in outputs)
        loss.backward()
        count += 1
        for tap, y in kept.items():
            if y.grad is not None:
                totals[taps[tap]] += _power(y, layers[taps[tap]])
    return {name: total / max(1, count) for name, total in totals.items()}


def _drawn(output: Any, feeds: Feeds, draw: Any) -> Any:
    """What the gradients are of, so that their squares are the sum of a batch over its tokens."""
    import torch

    if not output.is_floating_point() or not output.requires_grad:
        return torch.zeros(())
    found = token_inputs(feeds, output.detach().float().numpy())
    if found is None:
        signs = torch.randint(0, 2, output.shape, generator=draw) * 2 - 1
        return (output * signs).sum() / output.detach().norm().clamp_min(torch.finfo().tiny)
    _, mask = found
    seen = np.ones(output.shape[:2], bool) if mask is None else mask.astype(bool)
    logits = output.float()[torch.from_numpy(seen)]
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)
    return logits.log_softmax(-1).gather(-1, drawn).sum() / (2 * len(logits)) ** 0.5


def _power(y: Any, layer: Layer) -> float:
    """sum over rows of ||g||^2 ||y||^2 / N."""
    axis = 1 if len(layer.shape) > 2 else -1
    gradients, values = (t.detach().double().square().sum(axis) for t in (y.grad, y))
    return float((gradients * values).sum()) / float(y.shape[axis])
