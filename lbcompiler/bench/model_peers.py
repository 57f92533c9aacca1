"""Runtimes of a float model, to be timed beside its compiled form on the same inputs and threads.

| peer | what it runs |
|---|---|
| `onnxruntime_float` | the model as it is |
| `onnxruntime_dynamic_int8` | what its `quantize_dynamic` makes of it: int8, a scale a tensor |
| `openvino_float` | the model as it is, in float32 |
| `torch_float` | a .pt2 program; nothing else here runs one |
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lbcompiler.bench.timing import Progress, Work
from lbcompiler.errors import ConfigError, LbcError, reason_of
from lbcompiler.files import temporary_folder
from lbcompiler.frontend import kind_of
from lbcompiler.ir.model import Array
from lbcompiler.references import open_reference

Feeds = Mapping[str, Array]
Open = Callable[[Path, Feeds, int, Path], Work]  # (model, inputs, threads, scratch folder)


def default_names(model: Path) -> tuple[str, ...]:
    """The packages that are installed."""
    names = ("torch",) if kind_of(model) == "torch" else ("onnxruntime", "openvino")
    return tuple(name for name in names if find_spec(name) is not None)


def model_peers(
    model: Path, names: Sequence[str], feeds: Feeds, threads: int, progress: Progress
) -> tuple[dict[str, Work], dict[str, str]]:
    """What runs `model` on `feeds`, and the reasons of those that could not.

    Raises ConfigError for a peer that is unknown, not installed or for other files; ModelError or
    InputError where not even the float model runs.
    """
    opening: dict[str, Open] = {}
    for name in names:
        opening |= _variants(name, model)
    work: dict[str, Work] = {}
    missing: dict[str, str] = {}
    with temporary_folder() as scratch:
        for done, (name, open_peer) in enumerate(opening.items()):
            progress("peers", done, len(opening))
            try:
                run = open_peer(model, feeds, threads, scratch)
                run()
            except LbcError:
                raise
            except Exception as error:
                missing[name] = reason_of(error)
                continue
            work[name] = run
        progress("peers", len(opening), len(opening))
    return work, missing


def _variants(name: str, model: Path) -> dict[str, Open]:
    kind = kind_of(model)
    known: dict[str, tuple[str, dict[str, Open]]] = {
        "onnxruntime": ("onnx", {"float": _reference, "dynamic_int8": _dynamic_int8}),
        "openvino": ("onnx", {"float": _openvino}),
        "torch": ("torch", {"float": _reference}),
    }
    if name not in known:
        raise ConfigError(f"unknown peer {name!r}: choose of {', '.join(known)}")
    takes, variants = known[name]
    if takes != kind:
        raise ConfigError(f"the peer {name} does not run {model.name}: leave it out of --peers")
    if find_spec(name) is None:
        raise ConfigError(
            f"the peer {name} is not installed: pip install {name}, or leave it out of --peers"
        )
    return {f"{name}_{variant}": open_peer for variant, open_peer in variants.items()}


def _reference(model: Path, feeds: Feeds, threads: int, _scratch: Path) -> Work:
    reference = open_reference(model, threads=threads)
    return lambda: reference.run(feeds)


def _dynamic_int8(model: Path, feeds: Feeds, threads: int, scratch: Path) -> Work:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = scratch / "prepared.onnx", scratch / "dynamic_int8.onnx"
    logging.disable(logging.WARNING)  # it advises, to the root logger
    try:
        quant_pre_process(
            str(model), str(prepared), skip_symbolic_shape=True, save_as_external_data=True
        )
        quantize_dynamic(
            prepared, quantized, weight_type=QuantType.QInt8, use_external_data_format=True
        )
    finally:
        logging.disable(logging.NOTSET)
    return _reference(quantized, feeds, threads, scratch)


def _openvino(model: Path, feeds: Feeds, threads: int, _scratch: Path) -> Work:
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda: request.infer(dict(feeds), share_inputs=True)
