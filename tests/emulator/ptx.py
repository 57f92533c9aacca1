"""CUDA text -> C++ text for the emulator: inline assembly becomes calls of instructions.h.

Only what is in the table is known, operands in exactly that form; another instruction is an error,
never a no-op.
"""

import re

_SPACE = re.compile(r"\s+")


def _operands(*counts: int) -> str:
    """{%0, %1}, {%2} for (2, 1)."""
    groups, at = [], 0
    for count in counts:
        groups.append("{" + ", ".join(f"%{at + i}" for i in range(count)) + "}")
        at += count
    return ", ".join(groups)


def _exactly(text: str) -> str:
    return re.escape(text)


INSTRUCTIONS = {  # pattern -> what is called; a \1 stands for the pattern's group
    _exactly(
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {_operands(4, 4, 2, 4)};"
    ): "mma_m16n8k16_bf16",
    _exactly("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"): "ldmatrix_x4",
    _exactly("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"): "ldmatrix_x2",
    _exactly("cp.async.cg.shared.global [%0], [%1], 16, %2;"): "cp_async<16>",
    _exactly("cp.async.cg.shared.global [%0], [%1], 16;"): "cp_async<16>",
    _exactly("cp.async.commit_group;"): "commit_group",
    r"cp\.async\.wait_group (\d+);": r"wait_group<\1>",
    _exactly("cp.async.wait_all;"): "wait_all",
    _exactly("fma.rn.bf16x2 %0, %1, %2, %3;"): "fma_bf16x2",
    _exactly("cvt.rn.bf16x2.f32 %0, %1, %2;"): "cvt_bf16x2",
    r"cp\.async\.ca\.shared\.global \[%0\], \[%1\], (\d+), %2;": r"cp_async<\1>",
    r"mma\.sync\.aligned\.kind::(?:mxf4nvf4|mxf4|mxf8f6f4)\.block_scale\.scale_vec::(\d)X\."
    r"m16n8k(\d+)\.row\.col\.f32\.(e\dm\d)\.(e\dm\d)\.f32\.(ue\dm\d) "
    + re.escape(
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
        "{%10}, {0, 0}, {%11}, {0, 0};"
    ): r"mma_block_scaled<\2, \1, emulator::\3, emulator::\4, emulator::\5>",
    _exactly("mbarrier.init.shared::cta.b64 [%0], %1;"): "mbarrier_init",
    _exactly("mbarrier.arrive.shared::cta.b64 _, [%0];"): "mbarrier_arrive",
    _exactly("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"): "mbarrier_expect",
    _exactly(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
    ): "mbarrier_try_wait",
    _exactly("fence.mbarrier_init.release.cluster;"): "mbarrier_fence",
    _exactly(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
    ): "copy_bulk",
    _exactly(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];"
    ): "copy_tile",
    _exactly("wgmma.fence.sync.aligned;"): "wgmma_fence",
    _exactly("wgmma.commit_group.sync.aligned;"): "wgmma_commit",
    _exactly("wgmma.wait_group.sync.aligned 0;"): "wgmma_wait",
    r"\{ \.reg \.pred p; setp\.eq\.u32 p, 1, 1; wgmma\.mma_async\.sync\.aligned\."
    r"m64n(\d+)k16\.f32\.bf16\.bf16 \{[%\d, ]+\}, \{[%\d, ]+\}, %\d+, p, 1, 1, 0; \}": r"wgmma<\1>",
    r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32 \d+;": "set_registers",
    _exactly("bar.sync %0, %1;"): "bar_sync",
    _exactly(
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;"
    ): "tensor_allocate",
    _exactly("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;"): "tensor_free",
    _exactly("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"): "tensor_relinquish",
    r"tcgen05\.fence::(?:before|after)_thread_sync;": "tensor_fence",
    _exactly("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;"): "tensor_copy_32x128b",
    _exactly(
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];"
    ): "tensor_commit",
    **{
        _exactly(
            "{ .reg .pred p; setp.ne.b32 p, %6, 0; "
            f"tcgen05.mma.cta_group::1.kind::{kind}.block_scale.scale_vec::{scales}X "
            "[%0], %1, %2, %3, [%4], [%5], p; }"
        ): f"tensor_multiply<{bits}, {scales}>"
        for kind, bits, scales in (("mxf4nvf4", 4, 4), ("mxf4", 4, 2), ("mxf8f6f4", 8, 1))
    },
    r"tcgen05\.ld\.sync\.aligned\.32x32b\.x(\d+)\.b32 \{[%\d, ]+\}, \[%\d+\]; "
    r"tcgen05\.wait::ld\.sync\.aligned;": r"tensor_load<\1>",
}


WAITS = re.compile(
    r"^ +((?:tvm_builtin_\w*(?:cta_sync|warp_sync|wait_group)\w*|lb_(?:mbarrier|wgmma)_wait)"
    r"\(.*\));$",
    re.MULTILINE,
)
KERNEL = re.compile(r"^extern \"C\" __global__ .*?(\w+)\((?!\d)[^;]*\) \{$", re.MULTILINE)


class NotEmulatedError(Exception):
    """An instruction that the table does not have."""


def translate(text: str) -> str:
    """Every asm statement replaced, and dynamic shared memory that of the emulator."""
    text = re.sub(
        r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];",
        r"\1* \2 = reinterpret_cast<\1*>(emulator::shared_memory);",
        text,
    )
    text = re.sub(r"__shared__ alignas\((\d+)\)", r"alignas(\1) static", text)
    parts, at = [], 0
    for found in re.finditer(r"\b(?:__asm__|asm)\b\s*(?:volatile|__volatile__)?\s*\(", text):
        if found.start() < at:
            continue
        end = _closing(text, found.end())
        parts += [text[at : found.start()], _call(text[found.end() : end])]
        at = end + 1
    return "".join([*parts, text[at:]])


def number_waits(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text with every statement of a kernel that makes threads wait numbered, so that a run can
    leave it out, and (kernel, statement) of each.
    """
    found: list[tuple[str, str]] = []
    parts, at = [], 0
    for head in KERNEL.finditer(text):
        end = text.index("\n}\n", head.end())

        def numbered(wait: re.Match[str], kernel: str = head.group(1)) -> str:
            found.append((kernel, wait.group(1)))
            return f"  if (emulator::waits({len(found) - 1})) {wait.group(1)};"

        parts += [text[at : head.end()], WAITS.sub(numbered, text[head.end() : end])]
        at = end
    return "".join([*parts, text[at:]]), found


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that is open at `at` closes; strings are skipped."""
    depth, is_string = 1, False
    while True:
        character = text[at]
        if character == "\\" and is_string:
            at += 1
        elif character == '"':
            is_string = not is_string
        elif not is_string:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                return at
        at += 1


def _call(inside: str) -> str:
    sections = _split(inside, ":")
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', sections[0])
    code = _SPACE.sub(" ", "".join(strings).replace("\\n", " ").replace("\\t", " ")).strip()
    operands = []
    for section in sections[1:3]:
        for operand in _split(section, ","):
            if operand.strip():
                found = re.fullmatch(r'\s*"[^"]*"\s*\((.*)\)\s*', operand, re.DOTALL)
                assert found is not None, operand
                operands.append(found.group(1))
    for pattern, name in INSTRUCTIONS.items():
        if match := re.fullmatch(pattern, code):
            return f"emulator::{match.expand(name)}({', '.join(operands)})"
    raise NotEmulatedError(f"{code!r} with {len(operands)} operands")


def _split(text: str, separator: str) -> list[str]:
    """At separators outside of strings and parentheses; `::` is two."""
    parts, depth, is_string, last = [], 0, False, 0
    for at, character in enumerate(text):
        if character == '"':
            is_string = not is_string
        if is_string:
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append(text[last:at])
            last = at + 1
    return [*parts, text[last:]]
