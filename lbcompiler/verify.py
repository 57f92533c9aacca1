"""A compiled model beside its float source on the same data: how far apart their outputs are.

Outputs are measured and dropped run by run, so memory does not grow with the data. A quantized
linear is compared where it stands in the compiled model: its input already carries the error of the
layers before it, so the figures fall along the model and show where they fall most.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lbcompiler.config import FLOAT
from lbcompiler.data import batches, bind, read_arrays
from lbcompiler.epilogues import EPILOGUES
from lbcompiler.errors import ConfigError, ModelError
from lbcompiler.metrics import METRICS, Similarity, TokenAgreement
from lbcompiler.references import Reference, open_reference

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Progress = Callable[[str, int, int], None]

TOKEN_METRICS = {"kl", "top1", "perplexity"}
NO_VALUE = "the source has no value that it computes"
FIELDS = {"qsnr": ("qsnr_db",), "perplexity": ("perplexity", "reference_perplexity")}


class Program(Protocol):
    """What is verified: `lbcompiler.runtime.Program`."""

    @property
    def manifest(self) -> Any: ...
    def run(self, feeds: Feeds) -> dict[str, Array]: ...
    def observe(
        self, feeds: Feeds, observer: Callable[[Any, Array, Array | None], None]
    ) -> dict[str, Array]: ...


@dataclass
class Verification:
    """Figures by name of the output, and by layer in the order of the manifest; skipped: (layer,
    reason) of those that cannot be compared.
    """

    samples: int = 0
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: list[tuple[str, float]] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Sums:
    outputs: dict[str, Similarity] = field(default_factory=dict)
    tokens: dict[str, TokenAgreement] = field(default_factory=dict)
    layers: dict[str, Similarity] = field(default_factory=dict)


def verify(
    program: Program,
    reference: str | Path,
    data: str | Path,
    *,
    metrics: Sequence[str] | None = None,
    per_layer: bool = False,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Verification:
    """Run `data` (see `lbcompiler.data`) through both. `metrics` None: all that apply.

    Raises InputError, ModelError, and ConfigError where a metric was asked for that cannot apply.
    """
    inputs = program.manifest.inputs
    feeds = bind(read_arrays(data), inputs, data)
    layers = [layer for layer in program.manifest.layers if layer.realized != FLOAT]
    taps = [layer.output for layer in layers if layer.output] if per_layer else []
    source = open_reference(reference, taps, threads)
    compared = _Comparison(program, source, str(reference), layers if per_layer else [])
    sums = _Sums(layers={layer.name: Similarity() for layer in compared.layers})
    runs = list(batches(feeds, inputs, data, limit, at_once=1 if per_layer else 0))
    for done, run in enumerate(runs):
        progress("verify", done, len(runs))
        compared.add(
            run, sums, with_tokens=metrics is None or not TOKEN_METRICS.isdisjoint(metrics)
        )
        _refuse_inapplicable(metrics, sums)
    progress("verify", len(runs), len(runs))
    return Verification(
        samples=sum(_samples(run) for run in runs),
        outputs=_figures(sums, METRICS if metrics is None else metrics),
        layers=[(name, layer.qsnr_db) for name, layer in sums.layers.items()]
        if per_layer
        else None,
        skipped=[
            (layer.name, layer.output_missing or NO_VALUE) for layer in layers if not layer.output
        ]
        if per_layer
        else [],
    )


class _Comparison:
    """One program and one reference, their inputs and outputs paired."""

    def __init__(
        self, program: Program, source: Reference, path: str, layers: Sequence[Any]
    ) -> None:
        manifest = program.manifest
        self._program, self._source, self._path = program, source, path
        self._inputs = _paired("inputs", [p.name for p in manifest.inputs], source.inputs, path)
        self._outputs = _paired("outputs", [p.name for p in manifest.outputs], source.outputs, path)
        self.layers = [layer for layer in layers if layer.output]

    def add(self, feeds: Feeds, sums: _Sums, *, with_tokens: bool) -> None:
        """One run of both, into the sums."""
        values = self._source.run({theirs: feeds[ours] for ours, theirs in self._inputs.items()})
        ours = self._observed(feeds, values, sums) if self.layers else self._program.run(feeds)
        for name, theirs in self._outputs.items():
            y, reference = ours[name], values[theirs]
            self._measure(sums.outputs.setdefault(name, Similarity()), name, y, reference)
            found = token_inputs(feeds, reference) if with_tokens else None
            if found is not None:
                sums.tokens.setdefault(name, TokenAgreement()).add(y, reference, *found)

    def _observed(self, feeds: Feeds, values: Feeds, sums: _Sums) -> Feeds:
        def compare(layer: Any, output: Array, bias: Array | None) -> None:
            if layer.name in sums.layers:
                rows = output.reshape(-1, output.shape[-1])
                expected = expected_rows(layer, values[layer.output], bias)
                self._measure(sums.layers[layer.name], f"layer {layer.name}", rows, expected)

        return self._program.observe(feeds, compare)

    def _measure(self, sums: Similarity, name: str, ours: Array, reference: Array) -> None:
        if ours.shape != reference.shape:
            raise ModelError(
                f"{name} has shape {ours.shape} in the artifact and {reference.shape} in the "
                f"reference {self._path}: is it the model that was compiled?"
            )
        sums.add(ours, reference)


def expected_rows(layer: Any, value: Array, bias: Array | None) -> Array:
    """What the kernel of `layer` should write, (rows, N), from the source model's value of it.

    A convolution's NCHW becomes a row for each pixel; a bias that the source adds later, and the
    activation that the kernel applies, are added here.
    """
    if len(layer.shape) > 2:
        value = np.moveaxis(value, 1, -1)
    rows = value.reshape(-1, value.shape[-1])
    if bias is not None and not layer.output_has_bias:
        rows = rows + bias
    return EPILOGUES[layer.epilogue](rows)


def token_inputs(feeds: Feeds, output: Array) -> tuple[Array, Array | None] | None:
    """(ids, mask) where `output` is logits (batch, length, V) over an input `*input_ids`."""
    if output.ndim != 3 or output.dtype.kind != "f":
        return None
    ids = token_input(feeds, "input_ids", output.shape[:2])
    if ids is None or ids.dtype != np.int64 or ids.min() < 0 or ids.max() >= output.shape[-1]:
        return None
    return ids, token_input(feeds, "attention_mask", output.shape[:2])


def token_input(feeds: Feeds, ending: str, shape: tuple[int, ...]) -> Array | None:
    """The input `*ending` that has a value for each token of that shape, if there is one."""
    fitting = (x for name, x in feeds.items() if name.endswith(ending))
    return next((x for x in fitting if x.shape == shape and x.size), None)


def _paired(what: str, ours: Sequence[str], theirs: Sequence[str], path: str) -> dict[str, str]:
    """By name, or by position where the names are others but as many."""
    if set(ours) == set(theirs):
        return {name: name for name in ours}
    if len(ours) != len(theirs):
        raise ModelError(
            f"the artifact has the {what} {', '.join(ours)}, the reference {path} has "
            f"{', '.join(theirs)}: it is not the model that was compiled"
        )
    return dict(zip(ours, theirs, strict=True))


def _refuse_inapplicable(metrics: Iterable[str] | None, sums: _Sums) -> None:
    asked = [name for name in metrics or () if name in TOKEN_METRICS]
    if asked and not sums.tokens:
        raise ConfigError(
            f"{', '.join(asked)} cannot be measured: no output is logits (batch, length, "
            "vocabulary) over an int64 input named input_ids of shape (batch, length)"
        )


def _figures(sums: _Sums, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for name, similarity in sums.outputs.items():
        figures[name] = {}
        for metric in METRICS:
            holder = sums.tokens.get(name) if metric in TOKEN_METRICS else similarity
            if metric in metrics and holder is not None:
                fields = FIELDS.get(metric, (metric,))
                figures[name] |= {field: getattr(holder, field) for field in fields}
    return figures


def _samples(run: Feeds) -> int:
    """Along the first axis of the first input; 1 where that is a scalar, or there is none."""
    first = next(iter(run.values()), np.zeros(()))
    return first.shape[0] if first.ndim else 1
