"""Files that are no models, lie about their data, or hold what cannot be compiled: each a clear
ModelError.
"""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx import import_onnx
from tests.frontend.onnx_runner import Compiled

WEIGHT = np.arange(32, dtype=np.float32).reshape(8, 4)


def model(text: str = "y = MatMul(x, w)", *, weight: bool = True) -> onnx.ModelProto:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 8] x) => (float y) {' + text + "}"
    )
    if weight:
        proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return proto


def external(location: str, **entries: int) -> onnx.ModelProto:
    """A model whose weight lies in another file, as its entries say."""
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def refused(proto: onnx.ModelProto | bytes, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        import_onnx(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        import_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\x00" * 100, b"PK\x03\x04zip", os.urandom(400)]
)
def test_a_file_that_is_no_model(content: bytes, tmp_path: Path) -> None:
    assert "ONNX" in refused(content, tmp_path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    """Cut anywhere, a model is refused; it is never read as a smaller one or crashed on."""
    whole = model().SerializeToString()
    for length in range(0, len(whole), 7):
        refused(whole[:length], tmp_path)


def test_no_opset(tmp_path: Path) -> None:
    proto = model()
    del proto.opset_import[:]
    assert "does not say which ONNX opset" in refused(proto, tmp_path)


@pytest.mark.parametrize("version", [6, 99])
def test_an_opset_we_do_not_know(version: int, tmp_path: Path) -> None:
    proto = model()
    proto.opset_import[0].version = version
    assert f"uses ONNX opset {version}" in refused(proto, tmp_path)


def test_an_unknown_operator_names_itself_and_the_way_out(tmp_path: Path) -> None:
    proto = model("y = FlashGizmo(x)")
    proto.graph.node[0].name = "block.3/gizmo"
    message = refused(proto, tmp_path)
    for part in ("'block.3/gizmo'", "FlashGizmo", "opset 20", "export the model"):
        assert part in message


def test_an_operator_of_another_domain(tmp_path: Path) -> None:
    proto = model("y = Neg(x)")
    proto.graph.node[0].domain = "acme"
    assert "acme.Neg" in refused(proto, tmp_path)


def test_a_shape_that_data_decides(tmp_path: Path) -> None:
    message = refused(model("i = Cast <to = 7> (x) y = ConstantOfShape(i)", weight=False), tmp_path)
    assert "ConstantOfShape" in message
    assert "computed from data" in message


def test_a_value_nobody_computes(tmp_path: Path) -> None:
    assert "'z'" in refused(model("y = Neg(z)"), tmp_path)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    message = refused(model("t = Transpose(w) y = MatMul(x, t)"), tmp_path)
    assert "8 and 4" in message


def test_damaged_weights(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-3]
    assert "needs 128 bytes and has 125" in refused(proto, tmp_path)


def test_strings_and_sequences_cannot_enter(tmp_path: Path) -> None:
    proto = model("y = Neg(x)")
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "STRING" in refused(proto, tmp_path)
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(tensor))
    assert "no tensor" in refused(proto, tmp_path)


def test_external_data_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(b"skip" * 4 + WEIGHT.tobytes() + b"more")
    path = tmp_path / "model.onnx"
    path.write_bytes(external("sub/weights.bin", offset=16, length=128).SerializeToString())
    imported = import_onnx(path)
    x = np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(Compiled([imported]).run(0, {"x": x})[0], WEIGHT)
    (tmp_path / "sub" / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="became shorter"):
        imported.weights["w.T"].load()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 4}, "truncated"),
        ({"offset": -4}, "truncated"),
        ({"length": 64}, "should hold 128 bytes"),
        ({"offset": "many"}, "is not a number"),
    ],
)
def test_external_data_that_does_not_fit(
    entries: dict[str, int], message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert message in refused(external("w.bin", **entries), tmp_path)


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "link.bin", "links/w.bin", "", "."]
)
def test_external_data_outside_of_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "links").symlink_to(tmp_path)
    message = refused(external(location), folder)
    assert "outside of the model's folder" in message or "no usable location" in message


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    assert "Put the file" in refused(external("gone.bin"), tmp_path)
