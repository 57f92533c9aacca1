"""Codes and scale bytes to bfloat16, two to a register, exactly.

A code's fields are put where bfloat16 has its own and the product with a power of two sets the
exponent right; subnormal codes come out right as well, because bfloat16 arithmetic of two has
subnormals (PTX ISA, `fma.rn.bf16x2`). An integer is put under the leading one of a power of two,
which is then taken off. Code times scale is one more such product. It is exact because significands
of at most 4 and 7 (INT8 alone needs 7, and its scale has 1) bits make at most 8:

| element \\ scale | E8M0 | E4M3 |
|---|---|---|
| significand bits of the product | those of the code, at most 7 | code's + 4: 6 (E2M1), 7 (INT4) |

Two corners are left. A product of 2^128 or more is infinite, as it is in float32. E4M3 elements
under scales below 2^-124 and E5M2 elements under scales below 2^-117 may be no multiple of 2^-133,
the smallest bfloat16: they are rounded to nearest, and off by 2^-134 at most.
"""

from lbcompiler.formats import BlockFormat, Element
from lbcompiler.targets.cuda.intrinsics import Device, Expr, Registers, uint32
from lbcompiler.targets.cuda.layout import plane_bytes

_FMA = 'asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(v), "r"({factor}), "r"({addend}));'
_HEAD = "__device__ __forceinline__ unsigned {name}(unsigned x) {{ unsigned v, d; "
_MINUS_ZERO = "0x80008000u"


def _twice(half: int) -> str:
    """The literal of a register with the same 16 bits in both halves."""
    return f"0x{half << 16 | half:08X}u"


def _power_of_two(exponent: int) -> str:
    """bfloat16 2^exponent, twice."""
    return _twice((exponent + 127) << 7)


def value_pair(element: Element) -> Device:
    """uint32 with two stored codes in the low bits of its halves -> their values, two bfloat16."""
    name = f"lb_value_{element.name}"
    if element.is_integer:
        if element.bits == 8:
            body = f"v = (x & {_twice(0x7F)}) | {_twice(0x4300)}; "  # 128 + the lower seven bits
            addend = f"(x & {_twice(0x80)}) | {_twice(0xC300)}"  # -128, or -256
        else:
            body = f"v = x | {_twice(0x4300)}; "
            addend = _twice(0xC300 | 1 << (element.bits - 1))
        fma = _FMA.format(factor=_power_of_two(0), addend=addend)
        return Device(name, f"{_HEAD.format(name=name)}{body}{fma} return d; }}", "uint32")
    magnitude = _twice((1 << (element.bits - 1)) - 1)
    body = (
        f"v = ((x << {16 - element.bits}) & 0x80008000u) | "
        f"((x & {magnitude}) << {7 - element.mantissa_bits}); "
    )
    bias = 1 - element.smallest_exponent
    fma = _FMA.format(factor=_power_of_two(127 - bias), addend=_MINUS_ZERO)
    return Device(name, f"{_HEAD.format(name=name)}{body}{fma} return d; }}", "uint32")


def scale_pair(kind: str) -> Device:
    """uint32 of one scale byte (E4M3 without its sign) -> its value as bfloat16, twice. 0xFF of
    E8M0 and 0x7F of E4M3 are NaN.
    """
    name = f"lb_scale_{kind}"
    head = _HEAD.format(name=name)
    if kind == "e8m0":  # 0x40 below the exponent: 2^-127, a subnormal, or the NaN's bit
        body = "v = x << 7 | (((x + 1) & 255) < 2 ? 0x40u : 0u); d = v | v << 16; return d; }"
        return Device(name, head + body, "uint32")
    fma = _FMA.format(factor=_power_of_two(120), addend=_MINUS_ZERO)
    body = f"v = x << 4 | x << 20; {fma} return x == 127 ? {_twice(0x7FC0)} : d; }}"
    return Device(name, head + body, "uint32")


_PRODUCT = Device(
    "lb_product",
    "__device__ __forceinline__ unsigned lb_product(unsigned v, unsigned s) { unsigned d; "
    f"{_FMA.format(factor='s', addend=_MINUS_ZERO)} return d; }}",
    "uint32",
)


def product(values: Expr, scales: Expr) -> Expr:
    """Two bfloat16 times two."""
    return _PRODUCT(values, scales)


def code_pair(element: Element, words: Registers, at: int, step: int, pair: int) -> Expr:
    """The codes of a pair of a step in the low bits of the halves, from the words of a lane
    (layout.py), plane after plane from `words[at]` on.
    """
    if element.bits == 8:
        word = words[at + 2 * step + pair // 2]
        return word >> uint32(8 * (pair % 2)) & uint32(0x00FF00FF)
    low = words[at + step] >> uint32(4 * pair) & uint32(0x000F000F)
    if element.bits == 4:
        return low
    upper = words[at + 4 + step // 2] >> uint32(8 * (step % 2) + 2 * pair) & uint32(0x00030003)
    return low | upper << uint32(4)


def words_of_lane(element: Element) -> int:
    """Words of one lane and tile."""
    return sum(plane_bytes(element.bits)) // 128


def scale_byte(fmt: BlockFormat, word: Expr, step: int) -> Expr:
    """The scale of a step from the word of a row's scales in a tile."""
    return word >> uint32(8 * (step * 16 // fmt.block)) & uint32(0xFF)
