"""Kernels by themselves: what they compute against numpy, and against the emulator.

Tensor cores add products in an order, and round them in a way, that PTX leaves open ("mma": at
least single precision; order and rounding are unspecified). So sums of normal numbers are held to a
bound for any order and any rounding, and sums of whole numbers, which no order can round, to every
bit. Where no tensor core takes part (quantization, decoding) every bit counts.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.gpu import built
from tests.gpu.check import Array, Arrays, Figures, MissingError, WrongError, library_of
from tests.targets.cuda.fake_nvcc import ROOT

WANTED = "emulated.npz"
TIMEOUT_S = 300


class KernelCheck(Protocol):
    """A check in two halves: what the kernels write, and what that must be."""

    @property
    def name(self) -> str: ...

    @property
    def arch(self) -> Any: ...

    def functions(self) -> dict[str, Any]:
        """The PrimFuncs."""

    def outputs(self, kernels: built.Loaded) -> Arrays:
        """Of inputs that are always the same."""

    def judge(self, outputs: Arrays) -> Figures:
        """Raises WrongError."""


class EmulatedCheck(KernelCheck, Protocol):
    """One that the emulator can referee."""

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        """The GPU's outputs against the emulator's. Raises WrongError."""


@dataclass(frozen=True)
class AgainstNumpy:
    of: KernelCheck

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def library(self) -> str:
        return library_of(self.of)

    def build(self, folder: Path) -> None:
        built.build(self.of.functions(), self.of.arch, folder)

    def run(self, folder: Path) -> Figures:
        return self.of.judge(self.of.outputs(built.Loaded(folder)))


@dataclass(frozen=True)
class AgainstEmulator:
    """The same host code and the same CUDA text on this GPU and in the emulator."""

    of: EmulatedCheck

    @property
    def name(self) -> str:
        return f"emulator: {self.of.name}"

    def build(self, folder: Path) -> None:
        built.build(self.of.functions(), self.of.arch, folder)
        from tests.targets.cuda.fake_gpu import machine

        try:
            held = machine()
        except (RuntimeError, OSError, StopIteration) as error:  # no g++, no headers of CUDA
            (folder / "missing").write_text(f"the emulator cannot be built: {error}")
            return
        capability = ".".join(map(str, self.of.arch.capability))
        done = subprocess.run(
            [sys.executable, "-m", "tests.gpu.emulated", self.of.name, str(folder)],
            env={**os.environ, **held, "FAKE_CUDA_CAPABILITY": capability},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the emulator fails: {done.stderr.strip()[-2000:]}")

    def run(self, folder: Path) -> Figures:
        if (folder / "missing").exists():
            raise MissingError((folder / "missing").read_text())
        with np.load(folder / WANTED) as file:
            emulated = dict(file)
        return self.of.same(self.of.outputs(built.Loaded(folder)), emulated)


def emulate(check: EmulatedCheck, folder: Path) -> None:
    """The other half of `AgainstEmulator`, in a process that sees the emulated GPU."""
    from lbcompiler.targets.cuda.machine import gpu_for

    gpu_for(check.arch.name, "the emulator runs")
    np.savez(folder / WANTED, **check.outputs(built.Loaded(folder, emulated=True)))


def every_bit(ours: Arrays, wanted: Arrays) -> Figures:
    """All the same; any NaN is like another, and the zeros of float32 are. uint16 is bfloat16."""
    count = 0
    for name, expected in wanted.items():
        found = ours[name]
        different = ~_bits_equal(found, expected)
        count += found.size
        if different.any():
            place = tuple(int(axis[0]) for axis in np.nonzero(different))
            raise WrongError(
                f"{name}: {int(different.sum())} of {found.size} differ, the first at {place}: "
                f"{found[place]} instead of {expected[place]}"
            )
    return {"numbers": count, "agreement": "every bit"}


def _bits_equal(a: Array, b: Array) -> Array:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise WrongError(f"{a.dtype} {a.shape} instead of {b.dtype} {b.shape}")
    if a.dtype == np.float32:
        return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))
    if a.dtype == np.uint16:
        both_nan = ((a & 0x7FFF) > 0x7F80) & ((b & 0x7FFF) > 0x7F80)
        return np.asarray((a == b) | both_nan)
    return np.asarray(a == b)


def within(error: Array, bound: Array, what: str) -> float:
    """The largest share of a bound. Raises WrongError, also for NaN."""
    share = np.where(error <= bound, error / np.maximum(bound, np.finfo(np.float64).tiny), np.inf)
    if not (error <= bound).all():
        place = tuple(int(axis[0]) for axis in np.nonzero(~(error <= bound)))
        raise WrongError(
            f"{what}: {int((~(error <= bound)).sum())} of {error.size} are off, the first at "
            f"{place}: by {error[place]:.4g}, where {bound[place]:.4g} is the most"
        )
    return float(share.max())
