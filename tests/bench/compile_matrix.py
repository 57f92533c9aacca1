"""Does every model compile for every architecture in every format, and how long does it take?

    python -m tests.bench.compile_matrix --models tiny_lm,minilm,smollm2 --work-dir matrix
    python -m tests.bench.compile_matrix --table --work-dir matrix

One fat artifact a model and format: what stands before the targets is done once for all of them.
`seconds` of an architecture are those of all but the other architectures' code, so at most what
compiling for it alone takes. With `--cold` no kernel is compiled before its artifact; without, the
user's cache is used as it is. Rows are kept in `matrix.json` of the work folder, and a run that was
stopped goes on; a row whose compilation failed is tried again. No GPU is needed."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lbcompiler
from lbcompiler.artifact import Artifact
from lbcompiler.errors import LbcError
from lbcompiler.targets.cuda import build
from lbcompiler.targets.cuda.toolchain import Nvcc
from tests.bench.accuracy import BUILT, listed

ARCHS = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
FORMATS = ("nvfp4", "mxfp4", "mxint8", "mxfp8")
MODELS = {"tiny_lm": Path("models/tiny_lm.onnx")}  # others lie in the folder of built models
Row = dict[str, Any]


class Watched:
    """Seconds that each architecture's code took, and how many texts nvcc was given for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compiled: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        inner, compile_text = build.build, Nvcc.compile

        def timed(module: Any, arch: Any, *rest: Any) -> Any:
            start = time.perf_counter()
            made = inner(module, arch, *rest)
            self.seconds[arch.name] = time.perf_counter() - start
            return made

        def counted(nvcc: Nvcc, source: str, arch: Any) -> Any:
            self.compiled[arch.name] = self.compiled.get(arch.name, 0) + 1
            return compile_text(nvcc, source, arch)

        with patch.object(build, "build", timed), patch.object(Nvcc, "compile", counted):
            yield


def compile_all(model: Path, fmt: str, archs: list[str]) -> list[Row]:
    """A row for each architecture. Raises LbcError where the model does not compile."""
    watched, start = Watched(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lbc-matrix-") as folder:
        with watched.watching():
            artifact = lbcompiler.compile(
                model, f"cuda:{','.join(archs)}", fmt, output=Path(folder, "m.lbc")
            )
        before = time.perf_counter() - start - sum(watched.seconds.values())
        return [
            {
                **found(artifact, arch),
                "seconds": round(before + watched.seconds[arch], 1),
                "nvcc": watched.compiled.get(arch, 0),
            }
            for arch in archs
        ]


def found(artifact: Artifact, arch: str) -> Row:
    """What the manifest says of an architecture's program."""
    manifest = artifact.manifest
    layers = manifest.program(arch).layers
    kernels = [kernel for kernel in manifest.kernels if kernel.arch == arch]
    return {
        "arch": arch,
        "layers": len(layers),
        "routes": sorted({layer.kernel.partition("_")[0] for layer in layers if layer.kernel}),
        "kernels": len(kernels),
        "registers": max(kernel.registers for kernel in kernels),
        "spills": {k.name: k.spill_bytes for k in kernels if k.spill_bytes},
        "kernel_bytes": manifest.files[f"kernels.{arch}.safetensors"].bytes,
    }


@contextmanager
def empty_cache() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory(prefix="lbc-matrix-cache-") as folder,
        patch.dict(os.environ, XDG_CACHE_HOME=folder),
    ):
        yield


@contextmanager
def cache_as_it_is() -> Iterator[None]:
    yield


def table(rows: list[Row]) -> str:
    """Markdown: a line for each model and format, a column for each architecture."""
    archs = [arch for arch in ARCHS if any(row["arch"] == arch for row in rows)]
    lines = [f"| model | format | {' | '.join(archs)} |", "|---" * (len(archs) + 2) + "|"]
    for model, fmt in dict.fromkeys((row["model"], row["format"]) for row in rows):
        mine = {r["arch"]: r for r in rows if (r["model"], r["format"]) == (model, fmt)}
        cells = [shown(mine.get(arch)) for arch in archs]
        lines.append(f"| {model} | `{fmt}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(row: Row | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return f"fails: {row['error']}"
    spilled = f", {len(row['spills'])} spill" if row["spills"] else ""
    return f"{row['seconds']:.1f} s, {row['kernels']}{spilled}"


def kept(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return rows


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile models for CUDA in every way.")
    add = parser.add_argument
    add("--models", type=listed, default=["tiny_lm"])
    add("--formats", type=listed, default=list(FORMATS))
    add("--archs", type=listed, default=list(ARCHS))
    add("--built", type=Path, default=BUILT, help="where the models lie")
    add("--work-dir", type=Path, default=Path("matrix"))
    add("--cold", action="store_true", help="begin every artifact with no compiled kernels")
    add("--again", action="store_true", help="also what is there already")
    add("--table", action="store_true", help="print what is there, compile nothing")
    add("--json", action="store_true", help="print the rows as JSON, not as a table")
    return parser.parse_args()


def main() -> None:
    said = parsed()
    said.work_dir.mkdir(parents=True, exist_ok=True)
    path = said.work_dir / "matrix.json"
    wanted = [] if said.table else [(m, f) for m in said.models for f in said.formats]
    for model, fmt in wanted:
        rows = kept(path)
        done = {
            r["arch"]
            for r in rows
            if (r["model"], r["format"]) == (model, fmt) and "error" not in r
        }
        archs = [arch for arch in said.archs if said.again or arch not in done]
        if not archs:
            continue
        file = MODELS.get(model, said.built / f"{model}.onnx")
        try:
            with empty_cache() if said.cold else cache_as_it_is():
                made = compile_all(file, fmt, archs)
        except LbcError as error:
            made = [{"arch": arch, "error": str(error)} for arch in archs]
        new = [{"model": model, "format": fmt, "cold": said.cold, **row} for row in made]
        replaced = {(model, fmt, arch) for arch in archs}
        rows = [r for r in rows if (r["model"], r["format"], r["arch"]) not in replaced]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([*rows, *new], indent=1) + "\n")
        os.replace(partial, path)
        print("\n".join(f"{model} {fmt} {row['arch']}: {shown(row)}" for row in new), flush=True)
    print(json.dumps(kept(path), indent=1) if said.json else table(kept(path)))


if __name__ == "__main__":
    main()
