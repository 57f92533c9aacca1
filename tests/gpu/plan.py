"""Which checks there are, the most important first."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

from lbcompiler.formats import FORMATS
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cuda.arch import ARCHS
from tests.gpu.attention import Attention
from tests.gpu.check import Check
from tests.gpu.gemm import Gemm, gemms
from tests.gpu.kernels import AgainstEmulator, AgainstNumpy, EmulatedCheck, KernelCheck
from tests.gpu.models import FORMAT, Model
from tests.gpu.prologue import Prologued
from tests.gpu.quantize import Decode, Quantize
from tests.gpu.scheduled import Append, FloatProduct, LongAttention
from tests.gpu.speed import GemmSpeed, QuantizeSpeed
from tests.targets.cuda.attention_cases import CASES
from tests.targets.cuda.fake_nvcc import ROOT
from tests.targets.cuda.prologue_cases import KEPT

FIRST = ("nvfp4", "mxint8")  # formats: a native one with tensor scales, one of 8 bits
MIXED = (("mxfp4", "mxfp8"), ("mxfp6", "mxfp8_e5m2"))  # pairs: exact everywhere, native on sm_120a
FULL = ((1, 8, 13, 16, 45, 128, 130, 300), 1000, 2072)  # M's, N, K: tails of all, every kernel
SMALL = ((1, 13, 40), 72, 200)  # what an emulator does in a second
EMULATED = ((1, 13, 45, 130), 200, 328)
ROTATIONS = (None, Rotation(32, 5), Rotation(128))
QUANTIZED = (70, 1152)  # rows, K: more pieces than warps
DECODE_SHAPE, PREFILL_SHAPE = (1, 8192, 8192), (4096, 8192, 8192)
ROTATED = Rotation(128)


@dataclass(frozen=True)
class Options:
    """`archs`: those that the GPU runs, the best first; `models`: label -> path; `is_small`: shapes
    for an emulated GPU; `only`: checks whose name holds one of these, all where it is empty.
    """

    archs: tuple[str, ...]
    models: dict[str, str] = field(default_factory=dict)
    is_small: bool = False
    only: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Options":
        held = json.loads(text)
        return cls(tuple(held["archs"]), held["models"], held["is_small"], tuple(held["only"]))


def plan(options: Options) -> list[Check]:
    wanted = [
        check
        for check in _all(options)
        if not options.only or any(part in check.name for part in options.only)
    ]
    return list({check.name: check for check in wanted}.values())


def kernel_checks() -> dict[str, EmulatedCheck]:
    """Those that can be compared with the emulator, by name, whatever the options."""
    return {
        check.name: check
        for arch in ARCHS
        for check in (*_core(arch.name, EMULATED), *_core(arch.name, SMALL), *_others(arch.name))
    }


def _all(options: Options) -> Iterator[Check]:
    best, *others = options.archs
    sizes = SMALL if options.is_small else FULL
    for kernel in _core(best, sizes):
        yield AgainstNumpy(kernel)
    yield from _tiny_lm(best, options.is_small)
    if not options.is_small:
        yield from _speeds(best)
    for label, path in options.models.items():
        for act in ("none", FORMAT):
            yield Model(label, path, act, best, (1, 16, 128, 257))
    for kernel in _core(best, SMALL if options.is_small else EMULATED):
        yield AgainstEmulator(kernel)
    for kernel in _others(best):
        yield AgainstEmulator(kernel)
    for arch in options.archs:
        for kernel in (
            *_gemms(arch, sizes),
            *_quantizations(arch),
            *_others(arch),
            *_scheduled(arch, *sizes),
        ):
            yield AgainstNumpy(kernel)
    for arch in others:
        yield from _tiny_lm(arch, options.is_small)


def _core(arch: str, sizes: tuple[tuple[int, ...], int, int]) -> Iterator[EmulatedCheck]:
    """What everything else stands on."""
    for name in FIRST:
        yield from gemms(name, name, arch, *sizes)
        yield from gemms(name, None, arch, *sizes)
        yield from _staying(name, arch, *sizes[1:])
        yield Quantize(name, arch, None, *QUANTIZED)
        yield Quantize(name, arch, ROTATED, *QUANTIZED)
    yield Quantize(None, arch, None, *QUANTIZED)


def _gemms(arch: str, sizes: tuple[tuple[int, ...], int, int]) -> Iterator[EmulatedCheck]:
    for name in FORMATS:
        yield from gemms(name, name, arch, *sizes)
        yield from gemms(name, None, arch, *sizes)
    for weight, act in MIXED:
        yield from gemms(weight, act, arch, *sizes)
    for gemm in gemms(FIRST[0], FIRST[0], arch, *sizes):
        yield replace(gemm, epilogue="gelu")


def _staying(name: str, arch: str, n: int, k: int) -> Iterator[EmulatedCheck]:
    """Blocks that stay for several shares: with as many as the GPU has, no shape here has two."""
    gemm = Gemm(name, name, arch, (300,), n, k, (("blocks", 3), ("group", 2)))
    if gemm.program_of(300) == "wide":
        yield gemm


def _quantizations(arch: str) -> Iterator[KernelCheck]:
    for name in FORMATS:
        for rotation in ROTATIONS:
            yield Quantize(name, arch, rotation, *QUANTIZED)
    for name in FIRST:
        for prologue in KEPT:
            yield Prologued(name, arch, prologue, QUANTIZED[1])
            yield Prologued(name, arch, replace(prologue, rotation=ROTATED), QUANTIZED[1])


def _others(arch: str) -> Iterator[EmulatedCheck]:
    for case in CASES:
        yield Attention(case, arch)
        yield Attention(case, arch, few=False)
    for name in FORMATS:
        yield Decode(name, arch)


def _scheduled(arch: str, rows: tuple[int, ...], n: int, k: int) -> Iterator[KernelCheck]:
    yield FloatProduct(arch, rows, n, k)
    yield Append(arch, 5, 1)
    yield Append(arch, 130, 67)
    yield LongAttention(arch)


def _tiny_lm(arch: str, is_small: bool) -> Iterator[Check]:
    path, sample = (str(ROOT / "models" / name) for name in ("tiny_lm.onnx", "tiny_lm_sample.npz"))
    lengths = (9,) if is_small else (1, 9, 16, 64, 130)
    for act in ("none", FORMAT):
        yield Model("tiny_lm", path, act, arch, lengths, sample)


def _speeds(arch: str) -> Iterator[Check]:
    yield GemmSpeed("nvfp4", None, arch, DECODE_SHAPE)
    yield GemmSpeed("nvfp4", "nvfp4", arch, DECODE_SHAPE)
    yield GemmSpeed("nvfp4", "nvfp4", arch, PREFILL_SHAPE)
    yield GemmSpeed("mxint8", "mxint8", arch, PREFILL_SHAPE)
    for name in FIRST:
        yield QuantizeSpeed(name, ROTATED, arch, PREFILL_SHAPE[:2])


def archs_of(capability: tuple[int, int]) -> tuple[str, ...]:
    """What a GPU runs, the best first; what is taken only where it is asked for comes last."""
    known = [arch.name for arch in reversed(ARCHS) if arch.runs_on(capability)]
    return tuple(sorted(known, key=lambda name: "+" in name))
