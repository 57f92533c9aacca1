"""The rows of methods.py as the tables of docs/accuracy.md: a line a format, a column a method."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbcompiler.formats import FORMATS

LOGITS = {"kl": "{:.3g}", "perplexity": "{:.4g}", "qsnr_db": "{:.1f}"}
FIGURES = {  # what a cell shows of each model, in this order
    "tiny_lm": LOGITS,
    "minilm": {"qsnr_db": "{:.1f}", "cosine": "{:.4f}"},
    "rapidocr_recognition": {"qsnr_db": "{:.1f}", "character_accuracy": "{:.1%}"},
    "smollm2_noisy": LOGITS,
    "smollm2": LOGITS,
}
Row = dict[str, Any]


def tables(folder: Path, methods: Sequence[str]) -> str:
    """Markdown of every model in the folder."""
    parts = []
    for model, forms in FIGURES.items():
        file = folder / f"{model}.json"
        if not file.exists():
            continue
        rows: list[Row] = json.loads(file.read_text())
        uniform = {(r["format"], r["method"]): r for r in rows if "budget" not in r}
        known = [m for m in methods if any(method == m for _, method in uniform)]
        parts.append(f"### {model}: {' / '.join(forms)}\n\n{by_method(uniform, known, forms)}")
        if budgets := sorted((r for r in rows if "budget" in r), key=lambda r: r["budget"]):
            parts.append(by_budget(budgets, uniform))
    return "\n\n".join(parts)


def by_method(
    uniform: dict[tuple[str, str], Row], methods: Sequence[str], forms: dict[str, str]
) -> str:
    lines = [f"| format | bits | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
    for name, fmt in sorted(FORMATS.items(), key=lambda item: item[1].bits_per_element):
        cells = [shown(uniform.get((name, m)), forms) for m in methods]
        if any(cells):
            lines.append(f"| {name} | {fmt.bits_per_element:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(row: Row | None, forms: dict[str, str]) -> str:
    if row is None:
        return ""
    return " / ".join(form.format(row[name]) for name, form in forms.items())


def by_budget(budgets: Sequence[Row], uniform: dict[tuple[str, str], Row]) -> str:
    """Beside the best uniform format of the same method that needs no more bits."""
    lines = [
        "| at most | bits | KL | perplexity | best uniform format | its KL |",
        "|" + "---|" * 6,
    ]
    for row in budgets:
        within = {
            name: r
            for (name, method), r in uniform.items()
            if method == row["method"] and FORMATS[name].bits_per_element <= row["budget"]
        }
        best = min(within, key=lambda name: within[name]["kl"], default="")
        beside = f"{best} | {within[best]['kl']:.3g}" if best else " | "
        figures = f"{row['kl']:.3g} | {row['perplexity']:.4g}"
        lines.append(f"| {row['budget']:g} | {row['bits']:.3f} | {figures} | {beside} |")
    return "\n".join(lines)
