"""A cache that stays in place from call to call, against onnxruntime, which is given it anew."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import lbcompiler
from lbcompiler import session as session_module
from lbcompiler.errors import InputError
from tests.cached_decoder import STATES, WORDS, past_of, write_decoder

IDS = np.random.default_rng(1).integers(0, WORDS, (1, 24))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("model") / "cached.onnx")


@pytest.fixture(scope="module")
def program(model: Path) -> lbcompiler.Program:
    """In float32, so that onnxruntime says the same."""
    return lbcompiler.compile(model, exclude=".*").load(threads=1)


@pytest.fixture(scope="module")
def quantized(model: Path) -> lbcompiler.Program:
    return lbcompiler.compile(model, format="mxint8").load(threads=1)


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    runtime = onnxruntime.InferenceSession(str(model))
    names = [value.name for value in runtime.get_outputs()]
    return lambda feeds: dict(zip(names, runtime.run(None, feeds), strict=True))


def test_the_manifest_says_what_continues_what(program: lbcompiler.Program) -> None:
    states = program.manifest.states
    assert [(s.input, s.output) for s in states] == [(f"past_{n}", f"present_{n}") for n in STATES]
    assert {(s.axis, s.past, s.rows) for s in states} == {(2, "past", "length")}
    assert {dim.name: dim.low for dim in program.manifest.dims}["past"] == 0


@pytest.mark.parametrize(("past", "length", "batch"), [(0, 5, 1), (7, 1, 1), (3, 4, 2)])
def test_a_plain_call_gives_what_onnxruntime_gives_and_writes_to_nothing_given(
    program: lbcompiler.Program, reference: Any, past: int, length: int, batch: int
) -> None:
    ids = np.resize(IDS, (batch, length))
    feeds = {"input_ids": ids, **past_of(past, batch)}
    before = {name: array.copy() for name, array in feeds.items()}
    outputs, expected = program.run(feeds), reference(feeds)
    assert list(outputs) == list(expected)
    for name, array in outputs.items():
        np.testing.assert_allclose(array, expected[name], atol=2e-5)
        assert array.flags.writeable
        array[...] = 0
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_session_gives_what_the_whole_text_gives(
    program: lbcompiler.Program, reference: Any
) -> None:
    whole = reference({"input_ids": IDS, **past_of(0)})
    session, position = program.session(), 0
    for length in (9, 1, 1, 5, 1, 7):
        (logits,) = session(IDS[:, position : position + length]).values()
        expected = whole["logits"][:, position : position + length]
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        position += length
    assert session.pasts == {"past": 24}
    for name, held in session.states().items():
        np.testing.assert_allclose(held, whole[name], atol=2e-5)


def test_a_session_is_the_plain_call_bit_for_bit(quantized: lbcompiler.Program) -> None:
    session, held = quantized.session(), past_of(0)
    for length in (3, 1, 2):
        outputs = quantized.run({"input_ids": IDS[:, :length], **held})
        np.testing.assert_array_equal(session(IDS[:, :length])["logits"], outputs["logits"])
        held = {f"past_{name}": outputs[f"present_{name}"] for name in STATES}


def addresses(session: Any) -> list[int]:
    return [array.ctypes.data for array in session.states().values()]


def test_the_cache_stays_where_it_is_until_it_is_full(
    program: lbcompiler.Program, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "FIRST_ROOM", 4)
    session = program.session()
    session(IDS[:, :2])
    start = addresses(session)
    session(IDS[:, 2:4])
    assert addresses(session) == start
    session(IDS[:, 4:5])  # the fifth row has no room: moved once, with room for four more
    moved = addresses(session)
    assert moved != start
    (logits,) = session(IDS[:, 5:8]).values()
    assert addresses(session) == moved
    whole = reference({"input_ids": IDS[:, :8], **past_of(0)})
    np.testing.assert_allclose(logits, whole["logits"][:, 5:], atol=2e-5)
    assert addresses(program.session(room=64)) == []


def test_rewinding_goes_on_from_an_earlier_place(program: lbcompiler.Program) -> None:
    session = program.session()
    session(IDS[:, :6])
    first = session(IDS[:, 6:7])["logits"]
    session(IDS[:, 8:12])
    session.rewind(6)
    np.testing.assert_array_equal(session(IDS[:, 6:7])["logits"], first)
    session.rewind()
    assert session.pasts == {"past": 0}
    with pytest.raises(InputError, match="rewound to -1"):
        session.rewind(-1)


def test_sessions_of_one_program_do_not_see_each_other(program: lbcompiler.Program) -> None:
    one, other = program.session(), program.session()
    one(IDS[:, :3])
    other(IDS[:, 5:9])
    alone = program.session()
    alone(IDS[:, :3])
    np.testing.assert_array_equal(one(IDS[:, 3:4])["logits"], alone(IDS[:, 3:4])["logits"])


def test_a_call_that_fails_adds_nothing(program: lbcompiler.Program) -> None:
    session = program.session()
    session(IDS[:, :3])
    for wrong, message in (
        ({"input_ids": IDS[:, 3:4].astype(np.int32)}, "int32"),
        ({"input_ids": np.resize(IDS, (2, 1))}, "begun with batch = 1 and is given 2"),
        ({"input_ids": IDS[:, 3:4], **past_of(3)}, "no input 'past_key_0'"),
        ({}, "'input_ids' is missing"),
    ):
        with pytest.raises(InputError, match=message):
            session.run(wrong)
    assert session.pasts == {"past": 3}


def test_a_session_keeps_to_the_bounds_of_its_past(model: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 rows along 'past' .* for 2\.\."):
        lbcompiler.compile(model, inputs={"past_key_0": "?x2x(2..)x8"}).load(1).session()(IDS)
    session = lbcompiler.compile(model, inputs={"past_key_0": "?x2x(0..6)x8"}).load(1).session()
    session(IDS[:, :7])
    with pytest.raises(InputError, match=r"holds 7 rows along 'past' .* for 0\.\.6"):
        session(IDS[:, 7:8])
    session.rewind(2)
    session(IDS[:, 6:7])


def test_a_model_that_grows_nothing_has_no_session(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    with pytest.raises(InputError, match="carries nothing from call to call"):
        lbcompiler.compile(tmp_path / "m.onnx").load(1).session()
