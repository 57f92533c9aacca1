"""The claims of arXiv 2510.25602 about tensors, on the models beside us: docs/paper.md.

    python -m tests.bench.paper --model tiny_lm,minilm,smollm2_noisy --work-dir paper
    python -m tests.bench.paper --table --work-dir paper

What whole models make of the formats is measured by tests/bench/methods.py. A model whose file is
in the work folder is not measured again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.formats import format_named
from lbcompiler.formats.theory import crossover
from tests.bench.accuracy import BUILT, listed
from tests.bench.methods_data import SUBJECTS
from tests.bench.paper_tensors import CREST_BLOCKS, PAIRS, SEARCHED, figures, tensors

Row = dict[str, Any]
QUARTILES = (0, 25, 50, 75, 100)
LARGEST = 12.0  # crest factor where crossovers are looked for
SURE = 3.5  # the same with an error-free maximum, whose formula ends at sqrt(block)


def measured(model: str, built: Path, samples: int) -> list[Row]:
    subject = SUBJECTS[model]
    learned = subject.learned(built, samples)
    excluded = ("head", "lm_head")
    return [figures(tensor) for tensor in tensors(built / subject.file, learned, excluded)]


def crest_table(rows: list[Row]) -> str:
    """As its Table 2: quartiles over tensors, as they are and rotated."""
    head = ["min", "Q1", "median", "Q3", "max"]
    lines = [f"| block | {' | '.join(head)} | rotated: {' | '.join(head)} |"]
    lines.append("|" + "---|" * (1 + 2 * len(head)))
    for block in reversed(CREST_BLOCKS):
        cells = [
            f"{value:.2f}"
            for rotated in (0, 1)
            for value in np.percentile([r["crest"][str(block)][rotated] for r in rows], QUARTILES)
        ]
        lines.append(f"| {block or 'row'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def qsnr_table(rows: list[Row]) -> str:
    """As its Figure 4: mean QSNR and how often the integer wins, as they are and rotated; and how
    often the winner is the one that the crest factor says (formats/theory.py)."""
    lines = [
        "| pair | float dB | integer dB | integer wins | rotated: float | integer | integer wins "
        "| as the crossover says |",
        "|" + "---|" * 8,
    ]
    for integer, other in PAIRS:
        cells = []
        for rotated in (0, 1):
            a, b = (column(rows, "qsnr", name, rotated) for name in (integer, other))
            cells += [f"{b.mean():.2f}", f"{a.mean():.2f}", f"{(a > b).mean():.1%}"]
        cells.append(f"{agreement(rows, integer, other):.0%}")
        lines.append(f"| {integer} / {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(rows: list[Row], integer: str, other: str) -> float:
    """Share of tensors whose winner is on the side of the crossover that theory names."""
    fmt = format_named(integer)
    limit = crossover(fmt, format_named(other), high=SURE if fmt.has_tensor_scale else LARGEST)
    crest = np.array([row["crest"][str(fmt.block)][0] for row in rows])
    wins = column(rows, "qsnr", integer, 0) > column(rows, "qsnr", other, 0)
    return float((wins == (crest < limit)).mean())


def rotation_table(rows: list[Row]) -> str:
    """What a rotation does to a tensor's QSNR, by format and kind."""
    lines = [
        "| format | inputs: gain dB | helped | weights: gain dB | helped |",
        "|" + "---|" * 5,
    ]
    for name in (name for pair in PAIRS for name in pair):
        cells = []
        for kind in ("input", "weight"):
            part = [row for row in rows if row["kind"] == kind]
            gain = column(part, "qsnr", name, 1) - column(part, "qsnr", name, 0)
            cells += [f"{gain.mean():+.2f}", f"{(gain > 0).mean():.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_table(rows: list[Row]) -> str:
    """The best of each 4-bit format: rotated or not, and with its scales searched."""
    lines = [
        "| format | as it is | rotated | searched | searched, rotated | best of the four |",
        "|" + "---|" * 6,
    ]
    for name in SEARCHED:
        ways = [column(rows, key, name, r) for key in ("qsnr", "searched") for r in (0, 1)]
        values = [way.mean() for way in ways] + [np.max(ways, axis=0).mean()]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)


def column(rows: list[Row], key: str, name: str, rotated: int) -> np.ndarray:
    return np.array([row[key][name][rotated] for row in rows])


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "Crest factors": crest_table,
    "QSNR": qsnr_table,
    "Rotation": rotation_table,
    "Best against best": best_table,
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tensor-level claims of the papers, measured.")
    add = parser.add_argument
    add("--model", type=listed, default=["tiny_lm", "minilm", "smollm2_noisy"])
    add("--samples", type=int, default=8, help="of calibration data, for the inputs")
    add("--built", type=Path, default=BUILT, help="folder of the built models")
    add("--work-dir", type=Path, default=Path("paper"), help="what was measured is kept there")
    add("--table", action="store_true", help="print the tables of the work folder")
    return parser.parse_args()


def main() -> None:
    said = parsed()
    said.work_dir.mkdir(parents=True, exist_ok=True)
    for model in said.model:
        file = said.work_dir / f"{model}.json"
        if not file.exists():
            if said.table:
                continue
            file.write_text(json.dumps(measured(model, said.built, said.samples)) + "\n")
        rows = json.loads(file.read_text())
        kinds = [row["kind"] for row in rows]
        print(f"\n## {model}: {kinds.count('input')} inputs, {kinds.count('weight')} weights")
        for title, table in TABLES.items():
            print(f"\n### {title}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
