from typing import Any

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer
from lbcompiler.passes import SelectFormats
from tests.passes.build import Body, model_of

NVFP4 = FORMATS["nvfp4"]
NO_KERNEL = "this target has no kernel for it"


def write(b: Body, x: Any) -> Any:
    b.layer("attention/MatMul", reason="matmul of two activations")
    y = b(ops.dense(x, b.weight("a", 64, 64), layer=b.layer("block.0/up")))
    return b(ops.dense(y, b.weight("b", 8, 64), layer=b.layer("head")))


def select(**options: Any) -> dict[str, Layer]:
    options = {"act_format": NVFP4, "supports": lambda w, a: "", **options}
    choose = SelectFormats(NVFP4, weight_rule="sweep", act_rule="absmax", **options)
    return choose(model_of({"x": ["m", 64]}, write)).layers


def test_every_linear_gets_what_was_asked_and_the_rest_says_why() -> None:
    layers = select()
    for name in ("block.0/up", "head"):
        layer = layers[name]
        assert (layer.requested, layer.realized, layer.activation_format) == ("nvfp4",) * 3
        assert (layer.scale_rule, layer.activation_scale_rule) == ("sweep", "absmax")
    assert layers["attention/MatMul"].realized == "float32"
    assert layers["attention/MatMul"].reason == "matmul of two activations"


def test_weights_only() -> None:
    layer = select(act_format=None)["head"]
    assert (layer.weight_format, layer.activation_format) == ("nvfp4", "none")
    assert layer.activation_scale_rule == "none"


def test_include_and_exclude() -> None:
    layers = select(include=("block", "head"), exclude=("^head$",))
    assert layers["block.0/up"].realized == "nvfp4"
    assert (layers["head"].requested, layers["head"].realized) == ("float32", "float32")
    assert layers["head"].reason == "excluded by '^head$'"
    assert select(include=("block",))["head"].reason == "not included"


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    with pytest.raises(ConfigError, match=r"'blokc' matches no layer.*'block.0/up'"):
        select(**{option: ("blokc",)})


def test_asking_for_what_a_layer_cannot_have_is_an_error_unless_said() -> None:
    with pytest.raises(ConfigError, match=r"'attention/MatMul' cannot have nvfp4: matmul of two"):
        select(include=("attention",))
    layer = select(include=("attention",), on_unsupported="skip")["attention/MatMul"]
    assert (layer.requested, layer.realized) == ("nvfp4", "float32")


def only_weights(_: Any, act: Any) -> str:
    return NO_KERNEL if act else ""


def test_what_a_target_lacks_is_an_error_a_fallback_or_float() -> None:
    with pytest.raises(ConfigError, match=NO_KERNEL):
        select(supports=only_weights)
    layer = select(supports=only_weights, on_unsupported="fallback")["head"]
    assert (layer.weight_format, layer.activation_format) == ("nvfp4", "none")
    assert layer.reason == f"weights only: {NO_KERNEL}"
    layer = select(supports=only_weights, on_unsupported="skip")["head"]
    assert (layer.requested, layer.realized, layer.reason) == ("nvfp4", "float32", NO_KERNEL)
