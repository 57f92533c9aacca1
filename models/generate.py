"""Continue a text with a compiled decode graph, and say how many tokens a second that makes.

    python models/smollm2.py && lbc compile models/built/smollm2_decode.onnx --format nvfp4
    python models/generate.py smollm2_decode.lbc --prompt "The capital of France is"
    python models/generate.py smollm2_decode.lbc --onnx models/built/smollm2_decode.onnx
    python models/generate.py smollm2_decode.lbc --gguf SmolLM2-135M-Instruct.Q4_0.gguf
    python models/generate.py smollm2_decode.lbc --openvino smollm2_decode_int4.xml

The most likely token is taken each time, so that two runs print the same. A model of this form
takes `input_ids` (1, length) and a cache that it grows, and gives `logits` whose last row is what
comes next; with `--onnx`, onnxruntime runs the float model behind it, with `--gguf` llama.cpp
(`pip install llama-cpp-python`) its own form of the model, with `--openvino` OpenVINO the float
model or what NNCF's `compress_weights` made of it. The prompt is run once before
it is timed: the first run reads the weights from the disk.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

HERE = Path(__file__).parent
TOKENIZER = HERE / "built" / "smollm2_hf" / "tokenizer.json"
END = ("<|im_end|>", "<|endoftext|>")
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
INTERRUPTED = 130  # what shells say of a process that Ctrl-C ended


class Decoder(Protocol):
    """A model with its cache."""

    name: str

    def next(self, ids: Sequence[int]) -> int:
        """The most likely token behind all that was given since `forget`, `ids` the last of it."""
        ...

    def forget(self) -> None: ...


class Compiled:
    """An artifact: the session keeps the cache, a call is given what is new."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import lbcompiler

        self.name = path.name
        self._session = lbcompiler.load(path, threads).session()

    def next(self, ids: Sequence[int]) -> int:
        logits = self._session(input_ids=np.array([ids], np.int64))["logits"]
        return int(logits[0, -1].argmax())

    def forget(self) -> None:
        self._session.rewind()


class Float:
    """The same graph in onnxruntime, which is given the cache and returns it grown."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        self.name = f"onnxruntime, {path.name}"
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._past: dict[str, Any] = {}
        self.forget()

    def next(self, ids: Sequence[int]) -> int:
        feeds = {"input_ids": np.array([ids], np.int64), **self._past}
        logits, *present = self._session.run(None, feeds)
        self._past = dict(zip(self._past, present, strict=True))
        return int(logits[0, -1].argmax())

    def forget(self) -> None:
        """An empty past: one text, nothing along every other dimension that is not fixed."""
        self._past = {
            value.name: np.zeros(
                [1, *(d if isinstance(d, int) else 0 for d in value.shape[1:])], np.float32
            )
            for value in self._session.get_inputs()
            if value.name != "input_ids"
        }


class LlamaCpp:
    """A GGUF file in llama.cpp, in whatever types its weights are there."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import llama_cpp

        self.name = f"llama.cpp, {path.name}"
        self._logits = llama_cpp.llama_get_logits
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def next(self, ids: Sequence[int]) -> int:
        self._llama.eval(list(ids))
        shape = (self._llama.n_vocab(),)  # of the last token alone
        return int(np.ctypeslib.as_array(self._logits(self._llama.ctx), shape).argmax())

    def forget(self) -> None:
        self._llama.reset()


class OpenVino:
    """An .onnx or .xml of the same graph; OpenVINO holds the cache, all else is its default."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import openvino
        from openvino.passes import MakeStateful, Manager

        self.name = f"openvino, {path.name}"
        core = openvino.Core()
        model = core.read_model(path)
        past = [value.any_name for value in model.inputs if value.any_name != "input_ids"]
        present = [value.any_name for value in model.outputs[1:]]
        # One text: its batch is what an empty state takes, every other open dimension being 0.
        model.reshape(
            {value.any_name: [1, *list(value.partial_shape)[1:]] for value in model.inputs}
        )
        passes = Manager()
        passes.register_pass(MakeStateful(dict(zip(past, present, strict=True))))
        passes.run_passes(model)
        settings = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def next(self, ids: Sequence[int]) -> int:
        logits = self._request.infer({"input_ids": np.array([ids], np.int64)})["logits"]
        return int(logits[0, -1].argmax())

    def forget(self) -> None:
        self._request.reset_state()


@dataclass
class Run:
    """The tokens a model made of a prompt, and the seconds of the prompt and of each token."""

    prompt: int
    tokens: list[int] = field(default_factory=list)
    prefill: float = 0.0
    steps: list[float] = field(default_factory=list)

    def rates(self) -> str:
        said = f"{self.prompt} tokens of prompt at {self.prompt / self.prefill:.1f} tokens/s"
        if not self.steps:
            return said
        seconds = sum(self.steps)
        return (
            f"{said}, {len(self.steps)} more at {len(self.steps) / seconds:.1f} tokens/s "
            f"({1e3 * seconds / len(self.steps):.2f} ms each)"
        )


def generate(model: Decoder, prompt: Sequence[int], count: int, end: set[int]) -> Iterator[Run]:
    """The run after every token, up to `count` of them or one of `end`."""
    model.next(prompt)
    model.forget()
    run, ids = Run(len(prompt)), list(prompt)
    while len(run.tokens) < count:
        start = time.perf_counter()
        token = model.next(ids)
        seconds = time.perf_counter() - start
        if run.tokens:
            run.steps.append(seconds)
        else:
            run.prefill = seconds
        run.tokens.append(token)
        yield run
        if token in end:
            return
        ids = [token]


def show(run: Run, count: int) -> None:
    """A line on a terminal that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\rtoken {len(run.tokens)} of {count}", end="\r", file=sys.stderr, flush=True)


def clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def tokenizer_of(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        fail("the package `tokenizers` is not installed: pip install tokenizers")
    if not path.is_file():
        fail(f"there is no tokenizer {path}: run models/smollm2.py, or give --tokenizer")
    return Tokenizer.from_file(str(path))


def opened(make: Callable[[Path, int | None], Decoder], path: Path, threads: int | None) -> Decoder:
    """The model, its errors as one line."""
    try:
        return make(path, threads)
    except Exception as error:  # those of four runtimes
        fail(f"{path} cannot be run as a decoder: {str(error).strip().splitlines()[0]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", type=Path, help="a compiled decode graph")
    parser.add_argument("--prompt", default="The capital of France is", help="text to continue")
    parser.add_argument("--chat", action="store_true", help="ask the prompt as a user's question")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to make at most")
    parser.add_argument("--ignore-end", action="store_true", help="go on behind an end of text")
    parser.add_argument("--threads", type=int, help="one a physical core by default")
    parser.add_argument("--onnx", type=Path, help="the float model, to run in onnxruntime as well")
    parser.add_argument("--gguf", type=Path, help="a GGUF file, to run in llama.cpp as well")
    parser.add_argument("--openvino", type=Path, help="an .onnx or .xml, for OpenVINO as well")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="a tokenizer.json")
    given = parser.parse_args()
    for name in ("tokens", "threads"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; it must be 1 or more")
    return given


def main() -> None:
    given = arguments()
    tokenizer = tokenizer_of(given.tokenizer)
    text = CHAT.format(given.prompt) if given.chat else given.prompt
    prompt = tokenizer.encode(text).ids
    if not prompt:
        fail("the prompt is empty: give at least one word")
    ends = {tokenizer.token_to_id(token) for token in END}
    end = set() if given.ignore_end else ends - {None}
    models = [opened(Compiled, given.artifact, given.threads)]
    if given.onnx is not None:
        models.append(opened(Float, given.onnx, given.threads))
    if given.gguf is not None:
        models.append(opened(LlamaCpp, given.gguf, given.threads))
    if given.openvino is not None:
        models.append(opened(OpenVino, given.openvino, given.threads))
    for model in models:
        run = Run(len(prompt))
        try:
            for run in generate(model, prompt, given.tokens, end):
                show(run, given.tokens)
        except KeyboardInterrupt:
            clear()
            print(tokenizer.decode([*prompt, *run.tokens]), flush=True)
            raise SystemExit(INTERRUPTED) from None
        clear()
        print(tokenizer.decode([*prompt, *run.tokens]))
        print(f"{model.name}: {run.rates()}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
