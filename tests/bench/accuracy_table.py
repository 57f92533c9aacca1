"""The rows of accuracy.py as the tables of docs/accuracy.md.

python -m tests.bench.accuracy_table float.json compiled.json
"""

import json
import sys
from pathlib import Path
from typing import Any

SCORES = {
    "tiny_lm": {"perplexity": "{:.3f}"},
    "minilm": {"cosine": "{:.4f}", "least_cosine": "{:.4f}"},
    "rapidocr_recognition": {"character_accuracy": "{:.1%}", "line_accuracy": "{:.0%}"},
    "rapidocr_detection": {"text_iou": "{:.1%}"},
    "rapidocr_angle": {"accuracy": "{:.1%}"},
    "smollm2": {"perplexity": "{:.2f}"},
}
Row = dict[str, Any]


def table(name: str, rows: list[Row]) -> str:
    """Markdown: a line for each format of weights and activations, float first."""
    scores = SCORES[name]
    heads = ["weights", "activations", *(score.replace("_", " ") for score in scores), "agreement"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in sorted(rows, key=lambda row: row["engine"] != "float"):
        is_float = row["engine"] == "float"
        cells = ["float", "float"] if is_float else [row["format"], words(row["act_format"])]
        cells += [form.format(row[score]) for score, form in scores.items()]
        cells.append(f"{row['agreement_db']:.0f} dB" if "agreement_db" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def words(act_format: str) -> str:
    return "float" if act_format == "none" else act_format


def main() -> None:
    rows: list[Row] = [row for path in sys.argv[1:] for row in json.loads(Path(path).read_text())]
    for name in SCORES:
        chosen = [row for row in rows if row["model"] == name and row["source"] == "onnx"]
        if chosen:
            print(f"\n## {name}\n\n{table(name, chosen)}")


if __name__ == "__main__":
    main()
