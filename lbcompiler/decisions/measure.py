"""The whole model with some of its groups quantized, beside itself in float.

What is measured is the model's output: KL(float || quantized) of a token, in nats, where it is
logits over the words it reads, and for any model the noise of its outputs relative to their power.
Errors of layers do not add up exactly, so a plan is believed only once it was measured here."""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lbcompiler.calibration.segments import Group
from lbcompiler.calibration.simulator import Run, Simulator, dense, float_linears
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.data import Feeds
from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.formats import Quantized, format_named
from lbcompiler.ir.model import Array
from lbcompiler.ir.rotation import Rotation
from lbcompiler.verify import token_inputs

WeightsOf = Callable[[str, Solution], Sequence[Quantized]]  # of a group's layers, in their order
Results = Callable[[Array], Mapping[str, Array]]  # of one group: x (.., K) -> layer: y (.., N)

ROWS = 256  # of logits worked on at a time
FLOOR = 1e-12  # of a cost: below it float32 itself makes the difference


@dataclass(frozen=True)
class Divergence:
    """kl: mean of a token in nats, None where no output is logits; noise: sum of squared errors of
    the outputs over the sum of their squares, the worst output's."""

    noise: float
    kl: float | None = None

    @property
    def cost(self) -> float:
        """What is minimized: the KL where there is one; infinite where that is no number."""
        return _limited(self.noise if self.kl is None else self.kl)

    @property
    def qsnr_db(self) -> float:
        return -10.0 * math.log10(_limited(self.noise))


def _limited(loss: float) -> float:
    return math.inf if math.isnan(loss) else max(FLOOR, loss)


@dataclass
class _Logits:
    """Of one batch and output: the float model's, its probabilities, and which rows count."""

    values: Array
    probabilities: Array
    entropy: Array  # sum p log p of each row
    rows: Array


@dataclass
class _Sums:
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0
    tokens: int = 0

    def divergence(self) -> Divergence:
        noises = [
            n / self.signal[name] if self.signal[name] else float(n > 0)
            for name, n in self.noise.items()
        ]
        return Divergence(max(noises, default=0.0), self.kl / self.tokens if self.tokens else None)


class Measurement:
    """Batches that plans are measured on; their float outputs are held."""

    def __init__(
        self,
        simulator: Simulator,
        batches: Sequence[Feeds],
        parts: Mapping[str, Sequence[str]],
        weights: WeightsOf,
        seed: int | None,
        reordering: Container[str] = (),
    ) -> None:
        """parts: the layers of each group that solutions are of; the others stay in float.
        reordering: groups whose input channels can have any order.
        """
        self._reordering = reordering
        self.simulator, self._feeds = simulator, list(batches)
        self._parts, self._weights, self._seed = parts, weights, seed
        self._float = float_linears(simulator)
        self._references = [self._reference(feeds) for feeds in self._feeds]

    def first(self, count: int) -> "Measurement":
        """The same on the first batches only."""
        fewer = copy(self)
        fewer._feeds, fewer._references = self._feeds[:count], self._references[:count]
        return fewer

    def plan(self, chosen: Mapping[str, Solution]) -> Divergence:
        """The model with the chosen groups quantized, all others in float.

        All batches take each group together, so that weights of one group are held at a time; the
        last one, whose outputs are as large as logits, they take one by one."""
        runs, sums = [self.simulator.start(feeds) for feeds in self._feeds], _Sums()
        *others, last = self.simulator.groups
        for group in others:
            self._through(group, chosen.get(group.name), runs)
        final = self._linears(last, chosen.get(last.name))
        for reference in self._references:
            run = runs.pop(0)
            self._add(sums, self.simulator.resume(run, lambda _, x: final(x)), reference)
        return sums.divergence()

    def _through(self, group: Group, solution: Solution | None, runs: Sequence[Run]) -> None:
        """Every run past the group, whose weights are gone on return."""
        linears = self._linears(group, solution)
        for run in runs:
            self.simulator.finish(run, linears(self.simulator.reach(run)))

    def alone(
        self, options: Mapping[str, Sequence[Solution]]
    ) -> Iterator[tuple[str, list[Divergence]]]:
        """For each group in turn, that has options: the model with only it quantized so.

        The float model comes along once; only what is behind a group is computed again."""
        runs = [self.simulator.start(feeds) for feeds in self._feeds]
        for group in self.simulator.groups:
            inputs = [self.simulator.reach(run) for run in runs]
            if group.name in options:
                yield (
                    group.name,
                    [self._one(group, solution, runs, inputs) for solution in options[group.name]],
                )
            for run, x in zip(runs, inputs, strict=True):
                self.simulator.finish(run, self._float(group, x))

    def _one(
        self, group: Group, solution: Solution, runs: Sequence[Run], inputs: Sequence[Array]
    ) -> Divergence:
        linears, sums = self._linears(group, solution), _Sums()
        for run, x, reference in zip(runs, inputs, self._references, strict=True):
            ahead = run.copy()
            self.simulator.finish(ahead, linears(x))
            self._add(sums, self.simulator.resume(ahead, self._float), reference)
        return sums.divergence()

    def _linears(self, group: Group, solution: Solution | None) -> Results:
        """The group as its kernels will compute it, up to the order of float sums."""
        if solution is None:
            return partial(self._float, group)
        part, choice = self._parts[group.name], solution.choice
        fmt = format_named(choice.weight_format)
        held = [fmt.dequantize(q) for q in self._weights(group.name, solution)]
        cut = choice.cut(group.name, group.k, reorders=group.name in self._reordering)
        rest = Group(tuple(n for n in group.layers if n not in part), group.k)

        def linears(x: Array) -> dict[str, Array]:
            read = as_read(x if cut is None else cut.ordered(x), choice, self._seed)
            results = {
                layer: dense(read, weight, self.simulator.bias(layer))
                for layer, weight in zip(part, held, strict=True)
            }
            if cut is not None:
                rows = x.reshape(-1, group.k)
                for layer, y in results.items():
                    beside = cut.beside(rows, self.simulator.weight(layer))
                    y += beside.reshape(y.shape)
            return results | dict(self._float(rest, x))

        return linears

    def _reference(self, feeds: Feeds) -> dict[str, Array | _Logits]:
        outputs = self.simulator.run(feeds, self._float)
        held: dict[str, Array | _Logits] = {}
        for name, value in outputs.items():
            found = token_inputs(feeds, value)
            if found is None:
                held[name] = value.copy()
                continue
            _, mask = found
            seen = np.ones(value.shape[:2], bool) if mask is None else mask.astype(bool)
            rows = np.flatnonzero(seen.reshape(-1))
            logits = value.reshape(-1, value.shape[-1])[rows]
            held[name] = _Logits(logits, *_probabilities(logits), rows)
        return held

    def _add(
        self, sums: _Sums, outputs: Mapping[str, Array], references: Mapping[str, Array | _Logits]
    ) -> None:
        for name, reference in references.items():
            value = outputs[name]
            if isinstance(reference, _Logits):
                value = value.reshape(-1, value.shape[-1])[reference.rows]
                sums.kl += _kl(value, reference)
                sums.tokens += len(reference.rows)
                signal, noise = _squares(reference.values, value)
            else:
                signal, noise = _squares(reference, value)
            sums.signal[name] = sums.signal.get(name, 0.0) + signal
            sums.noise[name] = sums.noise.get(name, 0.0) + noise


def as_read(x: Array, choice: Choice, seed: int | None) -> Array:
    """x (.., K) as the layer's kernel reads it: rotated and rounded."""
    if choice.hadamard:
        x = Rotation(choice.hadamard, seed).apply(x)
    if choice.act_format == WEIGHT_ONLY:
        return x
    return format_named(choice.act_format).rounded(x, choice.act_rule, per_row=True)


def _probabilities(logits: Array) -> tuple[Array, Array]:
    """softmax (R, V) float32, and sum p log p of each row."""
    probabilities, entropy = np.empty_like(logits), np.empty(len(logits))
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        shifted = logits[rows] - logits[rows].max(axis=-1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=-1, keepdims=True)
        p /= total
        probabilities[rows] = p
        entropy[rows] = np.einsum("rv,rv->r", p, shifted) - np.log(total[:, 0])
    return probabilities, entropy


def _kl(logits: Array, reference: _Logits) -> float:
    """Sum over rows of KL(reference || logits): sum p log p - sum p logit + logsumexp.

    That of `metrics.TokenAgreement` in float32, with what the reference gives worked out once: a
    choice takes hundreds of these."""
    total = 0.0
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        shifted = logits[rows] - logits[rows].max(axis=-1, keepdims=True)
        expected = np.einsum("rv,rv->r", reference.probabilities[rows], shifted)
        np.exp(shifted, out=shifted)
        kl = reference.entropy[rows] - expected + np.log(shifted.sum(axis=-1))
        total += float(kl.sum(dtype=np.float64))
    return total


def _squares(reference: Array, y: Array) -> tuple[float, float]:
    """(sum reference^2, sum (reference - y)^2), where the reference is finite: a masked logit is
    minus infinity.
    """
    r, flat = reference.reshape(-1), y.reshape(-1)
    signal = float(np.dot(r, r))
    if not math.isfinite(signal):
        finite = np.isfinite(r)
        r, flat = r[finite], flat[finite]
        signal = float(np.dot(r, r))
    error = r - flat
    return signal, float(np.dot(error, error))
