"""Accuracy of the real models in block-scaled formats, as in docs/accuracy.md.

    python -m tests.bench.accuracy --model minilm,smollm2 --formats mxint8,nvfp4 --json out.json

An engine turns a model file, a format and an activation format into a callable: `compiled` is the
compiler, `reference` the numpy reference without it, `float` onnxruntime (torch for a .pt2) alone.
With `--agreement` each compiled model is also compared to the numpy reference of the same
quantization on a small input (see tests/bench/agreement.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.progress import Progress

import lbcompiler
from tests.bench.accuracy_tasks import TASKS, Model, Task
from tests.bench.agreement import Agreement, activations_in_memory, agreement, quantized_layers
from tests.bench.fake_quantized import Quantization
from tests.bench.reference import Reference
from tests.bench.reference_torch import TorchReference

FORMATS = ("mxint8", "mxfp8", "nvfp4", "nvint4", "mxfp4")
BUILT = Path("models/built")
IDENTICAL_DB = 1000.0  # JSON has no infinity
Row = dict[str, Any]


def float_engine(path: Path) -> Model:
    """The model as it is, outputs by name."""
    if path.suffix == ".pt2":
        return TorchReference(path, Quantization("none"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def reference_engine(path: Path, quantization: Quantization, exclude: set[str]) -> Model:
    made = TorchReference if path.suffix == ".pt2" else Reference
    return made(path, quantization, exclude)


def compiled_engine(path: Path, quantization: Quantization) -> lbcompiler.Program:
    return lbcompiler.compile(
        path,
        target="cpu",
        format=quantization.format,
        act_format=quantization.act_format,
        scale_rule=quantization.scale_rule,
        act_scale_rule=quantization.act_scale_rule,
    ).load()


def figures(found: Agreement) -> Row:
    layer, decibels = found.worst_input
    return {
        "agreement_db": min(found.output_db, IDENTICAL_DB),
        "agreement_alone_db": min(found.alone_db, IDENTICAL_DB),
        "worst_input_db": min(decibels, IDENTICAL_DB),
        "worst_input_layer": layer,
    }


def measure(
    task: Task,
    path: Path,
    engine: str,
    quantization: Quantization,
    folder: Path,
    with_agreement: bool,
) -> Row:
    """One row: scores, and the seconds that making and scoring the model took."""
    start = time.perf_counter()
    row: Row = {}
    if engine == "compiled":
        program = compiled_engine(path, quantization)
        model: Model = program.run
    elif engine == "reference":
        model = reference_engine(path, quantization, set())
    else:
        model = float_engine(path)
    row["make_seconds"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    row |= task.score(model, float_engine(path), folder)
    row["score_seconds"] = round(time.perf_counter() - start, 1)
    if engine == "compiled" and with_agreement:
        with activations_in_memory():
            program = compiled_engine(path, quantization)
        in_float = {layer.name for layer in program.manifest.layers} - quantized_layers(program)
        reference = reference_engine(path, quantization, in_float)
        row |= figures(agreement(program, reference, task.feeds(folder)))
    return row


def listed(text: str) -> list[str]:
    return text.split(",")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score real models in block-scaled formats.")
    add = parser.add_argument
    add("--model", type=listed, default=list(TASKS), help=",".join(TASKS))
    add("--formats", type=listed, default=list(FORMATS))
    add("--act-format", type=listed, default=["same", "none"], help="same, none or a format's name")
    add("--scale-rule")
    add("--act-scale-rule")
    add("--engine", choices=("compiled", "reference", "float"), default="compiled")
    add("--source", choices=("onnx", "pt2"), default="onnx")
    add("--built", type=Path, default=BUILT, help="folder of the built models")
    add("--agreement", action="store_true")
    add("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    console = Console(stderr=True)
    rows: list[Row] = []
    kinds = [("none", "none")]
    if arguments.engine != "float":
        kinds = [
            (f, f if a == "same" else a) for f in arguments.formats for a in arguments.act_format
        ]
    with Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        step = progress.add_task("", total=len(arguments.model) * len(kinds))
        for name in arguments.model:
            task = TASKS[name]
            path = (arguments.built / task.file).with_suffix(f".{arguments.source}")
            for fmt, act_format in kinds:
                progress.update(step, description=f"{name} {fmt} / {act_format}")
                quantization = Quantization(
                    fmt, act_format, arguments.scale_rule, arguments.act_scale_rule
                )
                row = {
                    "model": name,
                    "source": arguments.source,
                    "engine": arguments.engine,
                    "format": fmt,
                    "act_format": act_format,
                }
                row |= measure(
                    task, path, arguments.engine, quantization, arguments.built, arguments.agreement
                )
                rows.append(row)
                print(json.dumps(row), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
                progress.advance(step)


if __name__ == "__main__":
    main()
