"""What online rotations cost a whole model: one call with all inputs rotated, and one without.

    python -m tests.bench.rotation_speed models/built/smollm2.onnx --exclude lm_head --make
    python -m tests.bench.rotation_speed models/built/smollm2.onnx --exclude lm_head

Every quantized linear's input is rotated, which no decision asks for: the most that it can cost.
The artifacts of one format are timed in turn in one process (lbcompiler/bench/timing.py). `--make`
only compiles them, into the work folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import lbcompiler
from lbcompiler.bench.timing import interleaved
from tests.bench.accuracy import listed

ROUNDS = 15


def made(said: argparse.Namespace, fmt: str, size: int) -> Path:
    """The artifact with every input rotated by `size` (0: as it is), compiled where it is not."""
    path: Path = said.work_dir / f"{said.model.stem}.{fmt}.{size}.lbc"
    if not path.exists():
        hadamard = size or "off"
        lbcompiler.compile(
            said.model, "cpu", fmt, exclude=said.exclude, hadamard=hadamard, output=path
        )
    return path


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The time of a model with and without rotations.")
    add = parser.add_argument
    add("model", type=Path, help="a decoder, as an ONNX file")
    add("--formats", type=listed, default=["mxint8", "nvfp4", "nvint4"])
    add("--sizes", type=lambda text: [int(n) for n in listed(text)], default=[16, 32, 64])
    add("--exclude", type=listed, default=[])
    add("--tokens", type=int, default=512)
    add("--rounds", type=int, default=ROUNDS)
    add("--work-dir", type=Path, default=Path("rotation_speed"))
    add("--make", action="store_true", help="compile, and measure nothing")
    return parser.parse_args()


def main() -> None:
    said = parsed()
    ids = np.arange(said.tokens, dtype=np.int64)[None] % 1000
    for fmt in said.formats:
        paths = {size: made(said, fmt, size) for size in (0, *said.sizes)}
        if said.make:
            continue
        programs = {str(size): lbcompiler.load(path) for size, path in paths.items()}
        calls = {
            size: lambda program=program: program(input_ids=ids)
            for size, program in programs.items()
        }
        seconds = interleaved(calls, said.rounds)
        plain = seconds["0"]
        row = {
            "format": fmt,
            "plain_ms": round(1e3 * plain, 2),
            "rotated": {
                size: {"ms": round(1e3 * t, 2), "ratio": round(t / plain, 3)}
                for size, t in seconds.items()
                if size != "0"
            },
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
