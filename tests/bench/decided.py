"""Does an artifact whose layers were decided one by one compute its decisions? In dB.

    python -m tests.bench.decided models/built/smollm2_noisy.onnx --exclude lm_head \\
        --calibration-data models/built/smollm2_calibration.npz --calibration-samples 32 \\
        --formats nvfp4,nvint4,mxfp6,mxint8 --effective-bits 5 --state five.state

No second, simpler computation finds the codes of GPTQ again, so they are taken from the decisions,
before the compiler packs them, and what a layer does with them is computed anew: smoothed input,
rotations, rounding, both products of a split (docs/accuracy.md, "Agreement")."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import lbcompiler
import lbcompiler.compiler
from lbcompiler.config import FLOAT, WEIGHT_ONLY
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.work import Work
from lbcompiler.formats import format_named
from lbcompiler.frontend import import_model
from lbcompiler.ir.constants import constant_of
from lbcompiler.passes import OBSERVE
from lbcompiler.passes.fold_rotations import Producer, producers
from lbcompiler.passes.rotate_residual import stream_of
from lbcompiler.passes.split_outliers import arrangements
from lbcompiler.pipeline import run
from tests.bench.accuracy import figures, listed
from tests.bench.agreement import Agreement, activations_in_memory, agreement
from tests.bench.fake_quantized import Array, Following, linear
from tests.bench.reference import Reference

FOLDED_INTO_LINEAR = re.compile(r"(attention\.output|o_proj|down|down_proj)$")


class DecidedQuantization:
    """`fake_quantized.Quantization` of layers that were decided one by one.

    A smoothing lies in the norm before a layer, which the reference runs as it was, or in the codes
    of the linear before it: where `FOLDED_INTO_LINEAR` matches, the input comes scaled already.
    That linear has no bias in the models compared here, so its shift is still to be done. The
    residual stream is as it was between the layers: those that read it rotate it, and those that
    write it turn what they write back. Rotated values (`Decided.folded`) go through attention
    as they are."""

    def __init__(self, decided: Decided, path: Path | str) -> None:
        self.decided = decided
        model = run(OBSERVE, import_model(path, {}))
        self.arrangements = arrangements(model.module, decided.splits)
        self.turn, self.gains, self.writers = decided.residual, {}, set()
        if self.turn is not None:
            stream = stream_of(model.module).layers()
            self.writers = {layer for layer, gain in stream.items() if gain is None}
            self.gains = {
                n: constant_of(stream[n], model.weights) for n in stream.keys() - self.writers
            }
        known = producers(model.module)
        self.folds = {
            producer.layer: (producer, rotation)
            for layer, rotation in decided.folded.items()
            if isinstance(producer := known[layer], Producer)
        }
        if decided.smoothings and decided.splits:
            raise ValueError("the reference knows smoothed layers or split ones, not both at once")

    @property
    def in_float(self) -> set[str]:
        found = self.decided.decisions.items()
        return {name for name, decision in found if decision.weight_format == FLOAT}

    def weight(self, layer: str, _w: Array) -> Array:
        fmt = format_named(self.decided.decisions[layer].weight_format)
        return fmt.dequantize(self.decided.weights[layer]())

    def read(self, layer: str, x: Array) -> Array:
        """With its channels in their places; the kernel that rounds x rotates it as well, and so
        does `activation`."""
        if layer in self.gains:
            x = self.turn.apply(x / self.gains[layer])
        x = self._smoothed(layer, x)
        place = self.arrangements.get(layer)
        return x if place is None else x[..., place.order]

    def _smoothed(self, layer: str, x: Array) -> Array:
        smoothing = self.decided.smoothings.get(layer)
        if smoothing is None:
            return x
        if not FOLDED_INTO_LINEAR.search(layer):
            return smoothing.activation(x)
        return x if smoothing.shift is None else x - smoothing.shift / smoothing.scale

    def bias(self, layer: str, w: Array, bias: Array | None) -> Array | None:
        smoothing = self.decided.smoothings.get(layer)
        if smoothing is not None and smoothing.shift is not None:
            bias = smoothing.bias(w) + (np.float32(0) if bias is None else bias)
        return None if bias is None else self._made(layer, bias)

    def _made(self, layer: str, rows: Array) -> Array:
        """Of a weight (N, K) or a bias (N,): its rows as what reads them wants them."""
        if layer in self.writers:
            rows = self.turn.apply(rows.T).T
        if layer in self.folds:
            producer, rotation = self.folds[layer]
            rows = producer.rotated(rows, rotation)
        return rows

    def outliers(self, layer: str) -> dict[str, int]:
        place = self.arrangements.get(layer)
        return {f"{layer}.outliers": place.count} if place is not None and place.taken else {}

    def result(self, layer: str, w: Array, x: Array, y: Array, follow: Following | None) -> Array:
        for part in self.outliers(layer):
            place, fmt = self.arrangements[layer], format_named(self.decided.splits[layer].format)
            if layer in self.gains:
                w = self.turn.apply(w * self.gains[layer])
            w = place.outliers(self._made(layer, w))
            ends = [slice(start, end) for start, end in place.taken]
            taken = np.concatenate([x[..., end] for end in ends], axis=-1)
            taken = taken if follow is None else follow.instead_of(taken, part)
            y = y + linear(fmt.rounded(taken, per_row=True), fmt.rounded(w))
        return self.turn.inverse(y) if layer in self.writers else y

    def activation(self, layer: str, x: Array) -> Array:
        decision = self.decided.decisions[layer]
        if decision.rotation is not None:
            x = decision.rotation.apply(x)
        if decision.act_format == WEIGHT_ONLY:
            return x
        return format_named(decision.act_format).rounded(x, decision.act_rule, per_row=True)


@contextmanager
def decisions_kept() -> Iterator[list[Decided]]:
    """What is decided while models are compiled."""
    kept: list[Decided] = []
    measured = lbcompiler.compiler.measured

    def keeping(*arguments: Any) -> Any:
        found = measured(*arguments)
        kept.append(found[0])
        return found

    with patch.object(lbcompiler.compiler, "measured", keeping):
        yield kept


def agreement_of_decisions(path: Path | str, feeds: dict[str, Array], **options: Any) -> Agreement:
    """The ONNX model compiled with these options beside the reference of what was decided."""
    with activations_in_memory(), decisions_kept() as kept:
        program = lbcompiler.compile(path, "cpu", **options).load()
    (decided,) = kept
    quantization = DecidedQuantization(decided, path)
    float_layers = {layer.name for layer in program.manifest.layers} - set(decided.decisions)
    return agreement(
        program, Reference(path, quantization, float_layers | quantization.in_float), feeds
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Agreement of a decided artifact with numpy.")
    add = parser.add_argument
    add("model", type=Path, help="a decoder, as an ONNX file")
    add("--calibration-data", required=True)
    add("--calibration-samples", type=int)
    add("--formats", type=listed, default=["nvfp4"])
    add("--effective-bits", type=float)
    add("--quantizer", default="mr_gptq")
    add("--hadamard", default="auto")
    add("--smooth", default="off")
    add("--act-format", help="none: weights only")
    add("--exclude", type=listed, default=[])
    add("--tokens", type=int, default=64)
    add("--state", type=Path)
    add("--jobs", type=int)
    return parser.parse_args()


def main() -> None:
    said = parsed()
    data = np.load(said.calibration_data)["input_ids"][-1:, : said.tokens].astype(np.int64)
    options: dict[str, Any] = {
        name: getattr(said, name)
        for name in ("calibration_data", "calibration_samples", "quantizer", "hadamard", "smooth")
    }
    if said.effective_bits is None:
        options["format"] = said.formats[0]
    else:
        options |= {"formats": said.formats, "effective_bits": said.effective_bits}
    found = agreement_of_decisions(
        said.model,
        {"input_ids": data},
        act_format=said.act_format,
        exclude=said.exclude,
        work=Work(said.state, said.jobs),
        **options,
    )
    print(json.dumps(figures(found)))


if __name__ == "__main__":
    main()
