"""All formats with all quantizers, on data that nothing was learned from: docs/accuracy.md.

    python -m tests.bench.methods --model tiny_lm,minilm --work-dir methods
    python -m tests.bench.methods --model smollm2_noisy --bits 4.5,5,6,7 --work-dir methods
    python -m tests.bench.methods --table --work-dir methods

Every figure is of the compiled artifact beside the float model in onnxruntime: KL of a token and
perplexity where the output is logits, QSNR of the worst output, and the score of the model's task.
What was measured is kept in the work folder (`<model>.json`, and the state of the calibration; a
folder for one number of samples), so that a run which was stopped goes on, and the calibration of a
model serves all of its rows."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lbcompiler
from lbcompiler.decisions.work import Work
from lbcompiler.formats import FORMATS
from lbcompiler.metrics import Similarity, TokenAgreement
from lbcompiler.verify import token_inputs
from tests.bench.accuracy import BUILT, float_engine, listed
from tests.bench.accuracy_tasks import TASKS
from tests.bench.methods_data import SUBJECTS
from tests.bench.methods_table import tables

METHODS: dict[str, dict[str, str]] = {
    "rtn": {},
    "rtn+rotated": {},
    "rtn+hadamard": {"quantizer": "rtn", "hadamard": "auto"},
    "mse": {"quantizer": "mse", "hadamard": "auto"},
    "gptq": {"quantizer": "gptq", "hadamard": "off"},
    "mr_gptq": {"quantizer": "mr_gptq", "hadamard": "auto"},
    "quantease": {"quantizer": "quantease", "hadamard": "auto"},
}
FORCED = "rtn+rotated"  # every layer, by the block's Hadamard with random signs
SIGNS = 0  # their seed
CHOSEN = ("nvfp4", "nvint4", "mxfp6", "mxint8")  # candidates under a budget of bits
SCORED = ("minilm", "rapidocr_recognition")  # whose outputs are no logits over tokens
Row = dict[str, Any]


class HeldOut:
    """Feeds and what the float model makes of them, computed once."""

    def __init__(self, model: str, built: Path, count: int) -> None:
        subject = SUBJECTS[model]
        self.model, self.built = model, built
        self.feeds = subject.held_out(built, count)
        self.float_model = float_engine(built / subject.file)
        self.references = [self.float_model(feeds) for feeds in self.feeds]

    def figures(self, program: lbcompiler.Program) -> Row:
        similar: dict[str, Similarity] = {}
        tokens = TokenAgreement()
        for feeds, references in zip(self.feeds, self.references, strict=True):
            for name, y in program.run(feeds).items():
                reference = references[name]
                similar.setdefault(name, Similarity()).add(y, reference)
                if found := token_inputs(feeds, reference):
                    tokens.add(y, reference, *found)
        row: Row = {"qsnr_db": min(s.qsnr_db for s in similar.values())}
        if tokens.tokens:
            row |= {"kl": tokens.kl, "perplexity": tokens.perplexity, "tokens": tokens.tokens}
            row["float_perplexity"] = tokens.reference_perplexity
        if self.model in SCORED:
            row |= TASKS[self.model].score(program.run, self.float_model, self.built)
        return row


class Study:
    """The rows of one model, in its file."""

    def __init__(self, model: str, arguments: argparse.Namespace) -> None:
        self.model, self.subject, self.said = model, SUBJECTS[model], arguments
        self.file = arguments.work_dir / f"{model}.json"
        self.rows: list[Row] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.state = arguments.work_dir / f"{model}.state"
        self._learned: Row | None = None
        self._held_out: HeldOut | None = None

    @property
    def held_out(self) -> HeldOut:
        if self._held_out is None:
            self._held_out = HeldOut(self.model, self.said.built, self.said.held_out)
        return self._held_out

    @property
    def learned(self) -> Row:
        if self._learned is None:
            self._learned = self.subject.learned(self.said.built, self.said.learned)
        return self._learned

    def measure(self, key: Mapping[str, Any], options: Mapping[str, Any], calibrated: bool) -> None:
        """One row, unless it is known; `key` is what it is found by."""
        if any(all(row.get(k) == v for k, v in key.items()) for row in self.rows):
            return
        start = time.perf_counter()
        if calibrated:
            work = Work(self.state, self.said.jobs, self.said.jobs_backend)
            options = {"work": work, **self.learned, **options}
        artifact = lbcompiler.compile(
            self.said.built / self.subject.file, "cpu", exclude=self.subject.exclude, **options
        )
        row: Row = {"model": self.model, **key, "bits": artifact.manifest.effective_bits}
        row["made_seconds"] = round(time.perf_counter() - start, 1)
        row |= self.held_out.figures(artifact.load())
        row["layers"] = kinds(artifact.manifest.layers)
        self.rows.append(row)
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n")
        shown = {k: v for k, v in row.items() if k != "layers"}
        print(json.dumps(shown), flush=True)

    def forget_candidates(self, but: Sequence[str] = ()) -> None:
        """The weights of measured candidates, 0.1 GB a format and method for SmolLM2."""
        for folder in self.state.glob("candidates-*"):
            if folder.name not in but:
                shutil.rmtree(folder)

    def candidates(self) -> list[str]:
        return [folder.name for folder in self.state.glob("candidates-*")]


def options_of(method: str, fmt: str) -> dict[str, Any]:
    """What `lbcompiler.compile` is asked for."""
    if method == FORCED:
        return {"hadamard": FORMATS[fmt].block, "hadamard_seed": SIGNS}
    return dict(METHODS[method])


def kinds(layers: Sequence[Any]) -> dict[str, int]:
    """How many layers became what: format, quantizer and rotation."""
    found: dict[str, int] = {}
    for layer in layers:
        if layer.weight_format != "none":
            name = f"{layer.realized} {layer.quantizer} {layer.hadamard or 0}"
            found[name] = found.get(name, 0) + 1
    return found


def run(model: str, arguments: argparse.Namespace) -> None:
    study = Study(model, arguments)
    for method in arguments.methods:
        known = study.candidates()
        for fmt in arguments.formats:
            key = {"format": fmt, "method": method}
            study.measure(key, {"format": fmt, **options_of(method, fmt)}, bool(METHODS[method]))
        if method != "mr_gptq":  # whose candidates a budget takes as well
            study.forget_candidates(known)
    for bits in arguments.bits:
        key = {"format": ",".join(arguments.chosen), "method": "mr_gptq", "budget": bits}
        options = options_of("mr_gptq", "") | {"sensitivity": arguments.sensitivity}
        study.measure(key, {"formats": arguments.chosen, "effective_bits": bits, **options}, True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=listed, default=["tiny_lm"], help=",".join(SUBJECTS))
    add("--formats", type=listed, default=list(FORMATS))
    add("--methods", type=listed, default=list(METHODS), help=",".join(METHODS))
    add("--bits", type=lambda text: [float(b) for b in listed(text)], default=[])
    add("--chosen", type=listed, default=list(CHOSEN), help="candidates under a budget")
    add("--sensitivity", choices=("model", "output"), default="model")
    add("--learned", type=int, default=32, help="samples to learn from")
    add("--held-out", type=int, default=8, help="samples to judge by")
    add("--built", type=Path, default=BUILT, help="folder of the built models")
    add("--work-dir", type=Path, default=Path("methods"), help="what was measured is kept there")
    add("--jobs", type=int)
    add("--jobs-backend", default="loky")
    add("--table", action="store_true", help="print the tables of the work folder, measure nothing")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        print(tables(arguments.work_dir, arguments.methods))
        return
    for model in arguments.model:
        run(model, arguments)


if __name__ == "__main__":
    main()
