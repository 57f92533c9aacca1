"""Every code and every scale byte, on every instruction set that this machine has."""

from functools import cache

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import FORMATS, decode_scales
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.intrinsics import at, let
from tests.targets.cpu.reference import HERE, call, compiled

ELEMENTS = {fmt.element.name: fmt.element for fmt in FORMATS.values()}
INTEGER = [name for name, element in ELEMENTS.items() if element.integer_multiplier]
BYTES = np.arange(256, dtype=np.uint8)
each_isa = pytest.mark.parametrize("isa", HERE, ids=lambda isa: isa.name)


def mapped(transform, lanes: int, dtype: str):
    """PrimFunc: 256 bytes through `transform`, `lanes` at a time."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        source = T.arg("source", T.buffer((256,), "uint8"))
        result = T.arg("result", T.buffer((256,), dtype))
        with T.serial(256 // lanes) as i:
            value = transform(let(source[at(i * lanes, lanes)]))
            T.buffer_store(result, value, [at(i * lanes, lanes)])
    return builder.get()


@cache
def module_of(isa):
    functions = {
        f"scale_{kind}": mapped(
            lambda x, kind=kind: decode.scale_value(isa, kind, x), isa.lanes, "float32"
        )
        for kind in ("e8m0", "e4m3")
    }
    for name, element in ELEMENTS.items():
        functions[f"real_{name}"] = mapped(
            lambda x, element=element: decode.real_value(isa, element, x), isa.lanes, "float32"
        )
    for name in INTEGER:
        functions[f"unsigned_{name}"] = mapped(
            lambda x, name=name: decode.unsigned_operand(isa, ELEMENTS[name], x),
            isa.lanes * isa.k_group,
            "uint8",
        )
    return compiled(isa, **functions)


def codes_as_stored(element) -> tuple[np.ndarray, np.ndarray]:
    """(all codes, as layout stores them), repeated to fill 256 bytes."""
    codes = BYTES & np.uint8((1 << element.bits) - 1)
    flipped = codes ^ (1 << (element.bits - 1)) if element.is_integer else codes
    return codes, flipped.astype(np.uint8)


@each_isa
@pytest.mark.parametrize("kind", ["e8m0", "e4m3"])
def test_every_scale_byte(isa, kind) -> None:
    (scales,) = call(module_of(isa)[f"scale_{kind}"], [BYTES], ((256,), "float32"))
    np.testing.assert_array_equal(scales, decode_scales(BYTES, kind))


@each_isa
@pytest.mark.parametrize("name", ELEMENTS)
def test_every_code_in_float(isa, name) -> None:
    codes, stored = codes_as_stored(ELEMENTS[name])
    (values,) = call(module_of(isa)[f"real_{name}"], [stored], ((256,), "float32"))
    expected = ELEMENTS[name].decode(codes) * np.float32(decode.divisor(ELEMENTS[name]))
    np.testing.assert_array_equal(values, expected)


@each_isa
@pytest.mark.parametrize("name", INTEGER)
def test_every_code_as_the_unsigned_operand(isa, name) -> None:
    element = ELEMENTS[name]
    codes, stored = codes_as_stored(element)
    (operand,) = call(module_of(isa)[f"unsigned_{name}"], [stored], ((256,), "uint8"))
    expected = element.decode(codes) * decode.divisor(element) + decode.zero_point(element)
    np.testing.assert_array_equal(operand, expected)
    assert expected.min() >= 0
    assert expected.max() <= decode.unsigned_limit(element)
