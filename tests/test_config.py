"""What a user may say, and what is answered to what he may not."""

from pathlib import Path

import pytest

from lbcompiler.config import CompileConfig, make_config, parse_inputs, parse_shape
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.model import Dim


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("1x128", (1, 128)),
        ("1x(1..512)x384", (1, Dim("", 1, 512), 384)),
        ("(..8)", (Dim("", 1, 8),)),
        ("(0..8)", (Dim("", 0, 8),)),  # a past that may be empty
        ("(2..)x3", (Dim("", 2, None), 3)),
        ("?xseq_lenx3", ("?", "seq_len", 3)),
        ("batch", ("batch",)),
        ("", ()),
    ],
)
def test_shapes(text: str, dims: tuple[object, ...]) -> None:
    assert parse_shape(text) == dims


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x-2", "'-2'"),
        ("1xx2", "''"),
        ("1xmax", "''"),  # x joins dimensions, so a name with x is written ?
        ("1*2", r"'1\*2'"),
        ("(1-5)", r"'\(1-5\)'"),
        ("1x(5..1)", "empty dimension"),
        ("0x3", "empty dimension"),
        ("(0..0)", "empty dimension"),
        ("1.5", r"'1\.5'"),
    ],
)
def test_shapes_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shape(text)


def test_inputs_on_the_command_line() -> None:
    assert parse_inputs(["x:1x128", "a:b:0:2x?"]) == {"x": "1x128", "a:b:0": "2x?"}
    for wrong in ("x", ":1x2", "1x2"):
        with pytest.raises(ConfigError, match="NAME:SHAPE"):
            parse_inputs([wrong])
    with pytest.raises(ConfigError, match="empty dimension"):
        parse_inputs(["x:0"])


def test_defaults_follow_the_format() -> None:
    config = CompileConfig(format="nvfp4")
    assert config.weight_format is FORMATS["nvfp4"]
    assert config.activation_format is FORMATS["nvfp4"]
    assert (config.weight_rule, config.activation_rule) == ("absmax", "absmax")
    mixed = CompileConfig(format="mxfp4", act_format="mxfp8", scale_rule="mse")
    assert mixed.activation_format is FORMATS["mxfp8"]
    assert (mixed.weight_rule, mixed.activation_rule) == ("mse", "rceil")
    weight_only = CompileConfig(act_format="none")
    assert weight_only.activation_format is None
    assert weight_only.activation_rule == "none"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_a_valid_choice_of_both(name: str) -> None:
    config = CompileConfig(format=name, act_format=name)
    assert config.activation_rule == config.weight_rule == FORMATS[name].default_rule


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "nvfp5"}, "nvfp5.*nvfp4"),
        ({"act_format": "int8"}, "int8.*mxint8"),
        ({"format": "none"}, "none"),
        ({"format": "nvfp4", "scale_rule": "floor"}, "'floor' does not go with nvfp4.*absmax"),
        ({"act_scale_rule": "mse"}, "'mse' does not go with mxint8: choose one of"),
        ({"act_format": "none", "act_scale_rule": "floor"}, "one or the other"),
        ({"include": ["("]}, "no regular expression"),
        ({"inputs": {"x": "1x"}}, "cannot read the dimension"),
        ({"on_unsupported": "ignore"}, "on_unsupported.*'error', 'fallback' or 'skip'"),
        ({"formt": "nvfp4"}, "formt"),
        ({"include": [3]}, "include"),
        ({"inputs": ["x:1"]}, "inputs"),
        ({"target": None}, "target"),
    ],
)
def test_refusals(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(given)


def test_yaml_is_the_same_config(tmp_path: Path) -> None:
    config = CompileConfig(
        target="cpu:avx2",
        format="mxfp4",
        act_format="none",
        scale_rule="mse",
        include=("a", r"layers\.\d+"),
        exclude=("lm_head",),
        inputs={"ids": "1x(1..512)"},
        on_unsupported="skip",
    )
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    assert make_config({}, path) == config
    assert make_config({"format": "mxfp6", "exclude": ["x"]}, path) == config.model_copy(
        update={"format": "mxfp6", "exclude": ("x",)}
    )


def test_one_pattern_needs_no_list(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("exclude: lm_head\n")
    assert make_config({}, path).exclude == ("lm_head",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- a\n- b\n", "not a mapping"),
        (b"format: [mxint8\n", "cannot read the config"),
        (b"\xff\xfe\x00", "cannot read the config"),
        (b"format: !!python/object/apply:os.getcwd []\n", "cannot read the config"),
        (b"format: 4\n", "format"),
    ],
)
def test_files_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        make_config({}, path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        make_config({}, tmp_path / "gone.yaml")


def test_a_quantizer_that_searches_has_a_rule_that_does() -> None:
    assert make_config({"format": "mxfp4", "quantizer": "mse"}).weight_rule == "mse"
    said = {"format": "nvfp4", "quantizer": "mr_gptq", "scale_rule": "four_over_six"}
    assert make_config(said).weight_rule == "four_over_six"
    with pytest.raises(ConfigError, match="searches its scales"):
        make_config({"format": "mxfp4", "quantizer": "mse", "scale_rule": "floor"})
