"""What `lbc bench` found, as text for people or as the JSON of docs/json.md."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from lbcompiler.cli_show import print_json, print_line, print_table, shape

if TYPE_CHECKING:
    from lbcompiler.bench.gemm import GemmRow
    from lbcompiler.bench.model import ModelSpeed

OURS = "lbcompiler"
NAMES = {
    "dot": "int8",
    "tiles": "AMX bfloat16",
    "bf16": "bfloat16",
    "fma": "float32",
    "read": "DRAM read",
    "copy": "copy within the GPU",
}
LAST_SHARE = 0.999  # of the time, beyond which kernels are summed up in one line


def gemm(rows: Sequence["GemmRow"], as_json: bool) -> None:
    """`lbc bench gemm`."""
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    columns = (
        "shape",
        "weights x activations",
        "by",
        "ms",
        "GOP/s",
        "of peak",
        "GB/s of weights",
        "of DRAM",
        "ours is",
    )
    lines: list[Sequence[object]] = []
    for row in rows:
        formats = f"{row.format} x {row.act_format}" + (", cold" if row.cold else "")
        lines.append(
            (
                shape(row.shape),
                formats,
                OURS,
                _digits(row.ms),
                round(row.gops),
                _percent(row.ceiling_share),
                _digits(row.weight_gb_s),
                _percent(row.dram_share if row.cold else None),
                "",
            )
        )
        lines += [
            ("", "", name, _digits(peer.ms), round(peer.gops), "", "", "", _verdict(peer.ratio))
            for name, peer in row.peers.items()
        ]
    print_table(columns, lines)
    for row in rows:
        quantize = f"quantizing {_digits(row.quantize_ms)} ms of it; " if row.quantize_ms else ""
        peak = (
            f"{NAMES[row.ceiling]} peak {row.ceiling_gops:.0f} GOP/s"
            if row.ceiling_gops
            else f"{row.isa} has no {NAMES[row.ceiling]} peak that could be measured"
        )
        print_line(
            f"{shape(row.shape)} {row.format}: {quantize}{peak}, {NAMES[row.memory]} "
            f"{row.dram_gb_s:.1f} GB/s ({row.isa}, config: {row.config_source}, {_how(row)})"
        )
        for name, reason in row.missing.items():
            print_line(f"{name}: not measured ({reason})")


def _how(row: "GemmRow") -> str:
    if row.is_graph is None:
        return _threads(row.threads)
    return "CUDA graphs" if row.is_graph else "launched one by one: Python's gaps count"


def model(speed: "ModelSpeed", as_json: bool) -> None:
    """`lbc bench OUT.lbc`."""
    if as_json:
        print_json(asdict(speed))
        return
    sizes = ", ".join(f"{name} {shape(dims)}" for name, dims in speed.inputs.items())
    print_line(f"{speed.artifact}: {sizes}; {_threads(speed.threads)}")
    rows = [(OURS, _digits(speed.ms), "")]
    rows += [(name, _digits(p.ms), _verdict(p.ratio)) for name, p in speed.peers.items()]
    print_table(("by", "ms", "ours is"), rows)
    for name, reason in speed.missing.items():
        print_line(f"{name}: not measured ({reason})")
    if speed.profile:
        _print_profile(speed)
        _print_ceilings(speed.ceilings)


def _print_profile(speed: "ModelSpeed") -> None:
    rows: list[Sequence[object]] = []
    passed, left = 0.0, list(speed.profile)
    while left and passed < LAST_SHARE:
        row = left.pop(0)
        passed += row.share
        rows.append(
            (
                row.kernel,
                shape(row.shape) if row.shape else "",
                row.calls,
                _digits(row.ms),
                _percent(row.share),
                "" if row.gops is None else round(row.gops),
                _percent(row.ceiling_share),
                _digits(row.gb_s),
            )
        )
    columns = ("kernel", "shape", "calls", "ms", "share", "GOP/s", "of peak", "GB/s")
    print_table(columns, rows)
    total = sum(row.ms for row in speed.profile)
    rest = f"{len(left)} more kernels {_digits(sum(row.ms for row in left))} ms; " if left else ""
    print_line(f"{rest}all kernels {_digits(total)} ms")


def _print_ceilings(ceilings: Mapping[str, float]) -> None:
    parts = (
        f"{NAMES[name]} {rate:.4g} {'GB/s' if name in ('read', 'copy') else 'GOP/s'}"
        for name, rate in ceilings.items()
    )
    print_line(f"peaks here and now: {', '.join(parts)}")


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _verdict(ratio: float) -> str:
    return f"{ratio:.2f} times faster" if ratio >= 1 else f"{1 / ratio:.2f} times SLOWER"
