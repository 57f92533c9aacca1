"""Scales and rounding of activations as device functions: what `formats` defines, bit for bit.

Every product and quotient is one of CUDA's that are rounded once and never contracted (`__fmul_rn`,
`__fdiv_rn`), and subnormals count: text is compiled without --use_fast_math.
"""

import numpy as np

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, Element
from lbcompiler.formats.scale_rules import FOUR_OVER_SIX_LARGEST
from lbcompiler.formats.scales import E4M3_LARGEST
from lbcompiler.targets.cuda.intrinsics import Device

RULES = {"e8m0": ("floor", "rceil", "even"), "e4m3": ("absmax", "four_over_six")}  # others search
LARGEST = {"absmax": E4M3_LARGEST, "four_over_six": FOUR_OVER_SIX_LARGEST}  # of a row's scales
FOUR = 1.5  # times the scale that puts the largest at 6, of one that puts it at 4
INFINITY = 0x7F800000
_INLINE = "__device__ __forceinline__"


def check_rule(fmt: BlockFormat, rule: str) -> None:
    """ConfigError for a rule that only weights, quantized at leisure, can have."""
    known = RULES[fmt.scale]
    if rule not in known:
        raise ConfigError(
            f"activations of {fmt.name} cannot be quantized by the scale rule {rule!r}, which "
            f"searches; on the fly there are: {', '.join(known)}."
        )


def block_exponent(element: Element, rule: str) -> Device:
    """Bits of a block's largest finite |x| -> e of its scale 2^e, in [-127, 127]."""
    name = f"lb_exponent_{rule}_{element.name}"
    if rule == "rceil":
        limit = int(np.float32(element.max).view(np.int32))
        exponent = f"(bits - {limit} + 0x7FFFFF) >> 23"
    else:
        carry = 1 << (22 - element.mantissa_bits) if rule == "even" else 0
        exponent = f"((bits + {carry}) >> 23) - {127 + element.largest_exponent}"
    body = f"int e = {exponent}; e = e < -127 ? -127 : e; return e > 127 ? 127 : e;"
    return Device(name, f"{_INLINE} int {name}(int bits) {{ {body} }}", "int32")


POWER = Device(
    "lb_power",
    f"{_INLINE} float lb_power(int e) "
    "{ return __int_as_float(e == -127 ? 0x400000 : (e + 127) << 23); }",
    "float32",
)  # 2^e, e in [-127, 127]; the least is a subnormal


def _nearest(name: str, mantissa_bits: int, smallest_exponent: int) -> str:
    """The text of |x| -> the nearest value of a small float: |x| + c - c rounds at the last bit of
    c, which is 2^(23 - mantissa bits) above the binade of x (`Element.round`).
    """
    least, step = smallest_exponent + 127 << 23, 23 - mantissa_bits << 23
    return (
        f"{_INLINE} float {name}(float a) {{ int c = __float_as_int(a) & 0x7F800000; "
        f"c = (c < {least} ? {least} : c) + {step}; const float f = __int_as_float(c); "
        "return __fsub_rn(__fadd_rn(a, f), f); }"
    )


def to_value(element: Element) -> Device:
    """x in units of the scale -> the nearest value that a code has, saturated; an integer zero has
    no sign.
    """
    name = f"lb_round_{element.name}"
    clip = f"const float a = fminf(fabsf(x), {element.max:.1f}f);"
    if element.is_integer:
        body = f"{clip} const float r = rintf(a); return x < 0.0f ? 0.0f - r : r;"
        return Device(name, f"{_INLINE} float {name}(float x) {{ {body} }}", "float32")
    inner = _nearest(f"{name}_abs", element.mantissa_bits, element.smallest_exponent)
    text = (
        f"{inner}\n{_INLINE} float {name}(float x) {{ {clip} return copysignf({name}_abs(a), x); }}"
    )
    return Device(name, text, "float32")


def block_scale(element: Element, factor: float = 1.0) -> Device:
    """(bits of the block's largest finite |x|, g) -> the value of its E4M3 scale, [2^-9, 448]; of
    one larger by a factor.
    """
    name = f"lb_scale_of_{element.name}_{int(2 * factor)}"
    text = (
        f"{_nearest(f'{name}_abs', 3, -6)}\n{_INLINE} float {name}(int bits, float g) {{ "
        f"const float most = __fdiv_rn(__int_as_float(bits), {element.max:.1f}f); "
        f"const float r = __fdiv_rn(__fmul_rn(most, {factor}f), g); "
        f"return {name}_abs(fminf(fmaxf(r, 0.001953125f), 448.0f)); }}"
    )
    return Device(name, text, "float32")


def tensor_scale(element: Element, rule: str) -> Device:
    """Bits of a row's largest finite |x| -> g: at least 2^-126; 1 for a row of zeros."""
    name = f"lb_tensor_scale_{rule}_{element.name}"
    body = (
        f"const float g = __fdiv_rn(__int_as_float(bits), {element.max * LARGEST[rule]:.1f}f); "
        "return bits == 0 ? 1.0f : fmaxf(g, 1.17549435e-38f);"
    )
    return Device(name, f"{_INLINE} float {name}(int bits) {{ {body} }}", "float32")


def _code(name: str, bits: int, mantissa_bits: int, smallest_exponent: int) -> Device:
    """A value of a small float -> its code: fields moved, or a subnormal's count."""
    body = (
        "const int b = __float_as_int(x) & 0x7FFFFFFF; const float a = __int_as_float(b); "
        f"const int c = a < {2.0**smallest_exponent!r}f ? "
        f"int(__fmul_rn(a, {2.0 ** (mantissa_bits - smallest_exponent)!r}f)) : "
        f"(b >> {23 - mantissa_bits}) - {(126 + smallest_exponent) << mantissa_bits}; "
        f"return c | (__float_as_int(x) < 0 ? {1 << (bits - 1)} : 0);"
    )
    return Device(name, f"{_INLINE} int {name}(float x) {{ {body} }}", "int32")


def code_of(element: Element) -> Device:
    """float32 that an element of floats has -> its code."""
    name = f"lb_code_{element.name}"
    return _code(name, element.bits, element.mantissa_bits, element.smallest_exponent)


def code_of_scale(kind: str) -> Device:
    """float32 that a scale has, not NaN -> its byte."""
    if kind == "e4m3":
        return _code("lb_code_of_scale", 8, 3, -6)
    text = (
        f"{_INLINE} int lb_byte_of_power(float x) "
        "{ const int b = __float_as_int(x) >> 23; return b; }"
    )
    return Device("lb_byte_of_power", text, "int32")


MAGNITUDE = Device(
    "lb_magnitude",
    f"{_INLINE} int lb_magnitude(float x) {{ return __float_as_int(x) & 0x7FFFFFFF; }}",
    "int32",
)  # bits of |x|: they order like |x|, NaN above all
PRODUCT = Device(
    "lb_times",
    f"{_INLINE} float lb_times(float a, float b) {{ return __fmul_rn(a, b); }}",
    "float32",
)
QUOTIENT = Device(
    "lb_over",
    f"{_INLINE} float lb_over(float a, float b) {{ return __fdiv_rn(a, b); }}",
    "float32",
)
SUM = Device(
    "lb_plus",
    f"{_INLINE} float lb_plus(float a, float b) {{ return __fadd_rn(a, b); }}",
    "float32",
)
DIFFERENCE = Device(
    "lb_minus",
    f"{_INLINE} float lb_minus(float a, float b) {{ return __fsub_rn(a, b); }}",
    "float32",
)
TO_BFLOAT16 = Device(
    "lb_bfloat16_pair",
    f"{_INLINE} unsigned lb_bfloat16_pair(float low, float high) {{ unsigned d; "
    'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low)); return d; }',
    "uint32",
)  # two float32 to nearest
HIGH_PART = Device(
    "lb_high",
    f"{_INLINE} float lb_high(float x) {{ const int bits = __float_as_int(x); "
    f"return (bits & {INFINITY}) == {INFINITY} ? x : __int_as_float(bits & 0xFFFF0000); }}",
    "float32",
)  # x cut to a bfloat16; NaN and infinities stay
LOW_PART = Device(
    "lb_low",
    f"{_INLINE} float lb_low(float x, float high) "
    f"{{ return (__float_as_int(x) & {INFINITY}) == {INFINITY} ? 0.0f : __fsub_rn(x, high); }}",
    "float32",
)  # what is left of it, exact
SHUFFLE_INT = Device(
    "lb_shuffle_int",
    f"{_INLINE} int lb_shuffle_int(int x, int mask) {{ return __shfl_xor_sync(~0u, x, mask); }}",
    "int32",
)
SHUFFLE = Device(
    "lb_shuffle",
    f"{_INLINE} float lb_shuffle(float x, int mask) {{ return __shfl_xor_sync(~0u, x, mask); }}",
    "float32",
)
