"""Whole models: the GPU's artifact against the processor's, which rounds the same values in the
same places but sums in another order.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lbcompiler
from lbcompiler.artifact import Artifact, open_artifact
from lbcompiler.speed import synthetic_inputs
from tests.gpu.check import Array, Arrays, Figures, WrongError

FORMAT = "nvfp4"
GPU, CPU = "gpu.lbc", "cpu.lbc"
# Sums in another order differ by float32 rounding alone, but for codes of activations that they
# push over an edge; those are what the second bound allows.
LEAST_DB = {"none": 80.0, FORMAT: 35.0}
KNOWN_TOKENS = 1000  # every vocabulary here has more


@dataclass(frozen=True)
class Model:
    """`act`: the format of activations or `none`; `lengths`: the sizes that dynamic dimensions
    behind the first take, one run each. `sample`: an .npz of inputs to cut them from.
    """

    label: str
    path: str
    act: str
    arch_name: str
    lengths: tuple[int, ...]
    sample: str | None = None

    @property
    def name(self) -> str:
        return f"model {self.label} {FORMAT} x {self.act} {self.arch_name}"

    def build(self, folder: Path) -> None:
        for target, output in ((f"cuda:{self.arch_name}", GPU), ("cpu", CPU)):
            lbcompiler.compile(
                self.path,
                target=target,
                format=FORMAT,
                act_format=self.act,
                output=folder / output,
            )

    def run(self, folder: Path) -> Figures:
        ours, reference = (open_artifact(folder / name) for name in (GPU, CPU))
        program, expected = ours.load(), reference.load()
        figures: Figures = {}
        for length in self.lengths:
            feeds = self._feeds(ours, length)
            wanted = expected.run(feeds)
            program.run(feeds)  # allocates
            start = time.perf_counter()
            found = program.run(feeds)
            figures[f"ms at {length}"] = 1e3 * (time.perf_counter() - start)
            figures[f"dB at {length}"] = least = min(
                _qsnr_db(wanted[name], found[name]) for name in wanted
            )
            if not least >= LEAST_DB[self.act]:
                raise WrongError(
                    f"at length {length} it agrees with the processor's artifact to {least:.1f} "
                    f"dB, and {LEAST_DB[self.act]:.0f} are the least"
                )
        return figures

    def _feeds(self, artifact: Artifact, length: int) -> Arrays:
        if self.sample is not None:
            with np.load(self.sample) as file:
                return {name: array[:1, :length] for name, array in file.items()}
        ports = artifact.manifest.inputs
        shapes = {
            port.name: [
                size if isinstance(size, int) else (length if axis else 1)
                for axis, size in enumerate(port.shape)
            ]
            for port in ports
        }
        feeds = synthetic_inputs(artifact, shapes)
        rng = np.random.default_rng(length)
        for name, array in feeds.items():
            if name.endswith("input_ids"):
                feeds[name] = rng.integers(0, KNOWN_TOKENS, array.shape).astype(array.dtype)
        return feeds


def _qsnr_db(wanted: Array, found: Array) -> float:
    error = np.square(wanted.astype(np.float64) - found).sum()
    if error == 0:
        return float("inf")
    return float(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / error))
